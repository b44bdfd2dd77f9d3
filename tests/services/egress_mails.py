"""Mails about egress requests, as a real server gets them: what brings them about, and what is in them."""

import re
from datetime import datetime, timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from django.utils import timezone
from rest_framework.test import APIClient

from egress import jobs
from egress.models import StagedFile
from tenants import services as tenants
from tenants.models import Membership, User
from tenants.work import outbox
from tests.mailbox import Mailbox
from tests.services.egress import Api, decide, fill, path, row, see, submit, work_on


POLICY = "/api/v1/tenants/acme/egress-policy/"
DAY = timedelta(days=1)
WHY = "Table 2 shows single patients.\nRound it, please."


def set_policy(client: APIClient, **wish: Any) -> None:
    assert client.put(POLICY, wish).status_code == 200


def go_on(mailbox: Mailbox, now: datetime | None = None) -> list[EmailMessage]:
    """What goes on by itself, and the mails that it makes: those that are new."""
    before = len(mailbox.messages)
    work_on()
    outbox.send_due(now=now or timezone.now())
    return mailbox.messages[before:]


def ask(client: APIClient, mailbox: Mailbox, slug: str = "") -> Any:
    """A request in review, whose first mails are out; about this collection, or about a new one."""
    request = submit(client, slug or fill(client))
    go_on(mailbox)
    return request


def approve(api: Api, request: Any, *people: User) -> None:
    for person in people:
        assert decide(api(person), request).status_code == 201


def text_of(message: EmailMessage, kind: str = "plain") -> str:
    part = message.get_body((kind,))
    assert part is not None
    return str(part.get_content()).replace("\r\n", "\n")


def in_one_line(message: EmailMessage, kind: str) -> str:
    return " ".join(re.sub(r"</?(?:b|p|br)>", "", text_of(message, kind)).split())


def to(*people: User) -> list[str]:
    return sorted(person.email for person in people)


def recipients(messages: list[EmailMessage]) -> list[str]:
    return sorted(str(message["To"]) for message in messages)


def next_of(message: EmailMessage, kind: str = "plain") -> str:
    """What the mail says that its reader can do."""
    text = in_one_line(message, kind).replace("&#x27;", "'")
    (following,) = re.findall(r"Next steps: (.+?)(?:</p>| Open the request| To read the request)", text)
    return str(following)


def release(api: Api, request: Any, people: dict[str, User]) -> None:
    approve(api, request, people["grace"], people["ruth"])
    work_on()


def fail(api: Api, request: Any, people: dict[str, User], own_buckets: Path) -> None:
    approve(api, request, people["grace"], people["ruth"])
    (own_buckets / "staging" / StagedFile.objects.get(request=request["id"], number=1).object_key).unlink()
    work_on()


def retry(api: Api, request: Any, people: dict[str, User]) -> None:
    assert api(people["root"]).post(path(request, "retry/"), {"reason": ""}).status_code == 200


def shown(client: APIClient, request: Any) -> dict[str, str]:
    return {each["to"]: each["state"] for each in see(client, request)["notifications"]}


def states(client: APIClient, request: Any, kind: str = "egress_outcome") -> list[str]:
    return [each["state"] for each in see(client, request)["notifications"] if each["kind"] == kind]


def deadline_of(request: Any) -> datetime:
    deadline = row(request).expires_at
    assert deadline is not None
    return deadline


def lose_role(user: User, alice: User, now: datetime) -> None:
    tenants.set_roles(membership=Membership.objects.get(user=user), roles=["member"], by=alice, now=now)


def leave(user: User, alice: User, now: datetime) -> None:
    tenants.remove_member(membership=Membership.objects.get(user=user), by=alice, now=now)


def be_deactivated(user: User, alice: User, now: datetime) -> None:
    User.objects.filter(pk=user.pk).update(is_active=False)


def reject(api: Api, request: Any, people: dict[str, User]) -> None:
    assert decide(api(people["grace"]), request, "reject", WHY).status_code == 201


def send_back(api: Api, request: Any, people: dict[str, User]) -> None:
    assert decide(api(people["grace"]), request, "return", WHY).status_code == 201


def expire(api: Api, request: Any, people: dict[str, User]) -> None:
    approve(api, request, people["grace"])
    outbox.send_due(now=timezone.now())
    jobs.end_expired(now=timezone.now() + 22 * DAY)


def revoke(api: Api, request: Any, people: dict[str, User]) -> None:
    release(api, request, people)
    outbox.send_due(now=timezone.now())
    assert api(people["rick"]).post(path(request, "revoke/"), {"reason": WHY}).status_code == 200
