"""Mails: rows in the transaction of what they tell of, sent by a tick to a real server; one that fails changes nothing (F-34)."""

import json
import logging
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection, transaction
from django.utils import timezone
from pytest_django import Settings
from rest_framework.test import APIClient

from tenants import tasks
from tenants.models import AuditEvent, Invitation, Mail, Membership, Tenant, User
from tenants.work import outbox
from tests.mailbox import ConnectionDrop, Mailbox
from tests.races import race


Api = Callable[[User | None], APIClient]
MEMBERS = "/api/v1/tenants/acme/members/"
RESET = "/api/v1/auth/password/reset/"
PAUSE = timedelta(minutes=6)


def use(settings: Settings, port: int) -> None:
    settings.EMAIL_BACKEND = "config.mail.SMTPBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", port


@pytest.fixture
def mailbox(settings: Settings) -> Iterator[Mailbox]:
    with Mailbox() as mailbox:
        use(settings, mailbox.port)
        yield mailbox


@pytest.fixture
def no_mailbox(settings: Settings) -> int:
    """The port of a server that is down."""
    with Mailbox() as mailbox:
        use(settings, mailbox.port)
    return mailbox.port


Wording = Callable[..., None]


@pytest.fixture
def wording(db: None, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wording:
    """Makes what a kind of mail says, as an app does: two templates, and a writer that fills them with these values."""
    folder = tmp_path / "mail"
    folder.mkdir()
    settings.TEMPLATES = [settings.TEMPLATES[0] | {"DIRS": [tmp_path]}]

    def say(kind: str, text: str, html: str, **values: str) -> None:
        (folder / f"{kind}.txt").write_text("{% autoescape off %}" + text + "{% endautoescape %}")
        (folder / f"{kind}.html").write_text(html)
        monkeypatch.setitem(outbox._context_builders, kind, lambda mail, now: dict(values))

    return say


def invite(client: APIClient, email: str = "dora@example.org", **changes: Any) -> None:
    assert client.post(MEMBERS, {"email": email, "roles": ["member"], **changes}).status_code == 202


def tell(now: datetime, *, to: str = "bob@example.org", **more: Any) -> None:
    outbox.queue("verdict", to=to, now=now, **more)


def text_of(message: EmailMessage, kind: str = "plain") -> str:
    part = message.get_body((kind,))
    assert part is not None
    return str(part.get_content())


# --- What is sent ---


def test_invitation_is_mailed_as_text_and_html(mailbox: Mailbox, alice: User, api: Api, settings: Settings) -> None:
    settings.APP_URL, settings.DEFAULT_FROM_EMAIL = "https://app.example.org", "Strongroom <files@example.org>"
    invite(api(alice), roles=["member", "research_it"])
    assert mailbox.messages == []

    tasks.send_mail()

    (message,) = mailbox.messages
    assert (message["To"], message["From"]) == ("dora@example.org", "Strongroom <files@example.org>")
    assert message["Subject"] == "Invitation to Acme"
    assert message["Message-ID"] == f"<{Mail.objects.get().pk}@example.org>"
    assert message["Auto-Submitted"] == "auto-generated"
    for kind in ("plain", "html"):
        text = text_of(message, kind)
        assert "alice (alice@example.org)" in text
        assert "member, research it" in text
        assert "https://app.example.org/invitation?token=" in text
        assert "curl" not in text


@pytest.mark.both_databases
def test_mail_is_sent_once(mailbox: Mailbox, alice: User, api: Api) -> None:
    invite(api(alice))
    for _ in range(3):
        tasks.send_mail()
    assert mailbox.recipients == ["dora@example.org"]
    mail = Mail.objects.get()
    assert (mail.sent_at is not None, mail.lease_owner, mail.problem) == (True, "", "")


@pytest.mark.both_databases
def test_mail_waits_until_it_is_due(mailbox: Mailbox, alice: User, api: Api, now: datetime) -> None:
    invite(api(alice))
    Mail.objects.update(due_at=now + timedelta(hours=1))
    assert outbox.send_due(now=now + timedelta(minutes=59)) == 0
    assert outbox.send_due(now=now + timedelta(minutes=61)) == 1


@pytest.mark.parametrize(
    ("app_url", "public_url", "expected"),
    [
        ("https://app.example.org", "https://files.example.org", "https://app.example.org/reset-password?token="),
        ("", "https://files.example.org", "https://files.example.org/reset-password?token="),
        ("", "", "http://127.0.0.1:8000/api/v1/auth/password/reset/confirm/"),
    ],
)
def test_mail_leads_to_the_frontend_or_to_curl(
    mailbox: Mailbox, alice: User, api: Api, settings: Settings, app_url: str, public_url: str, expected: str
) -> None:
    settings.APP_URL, settings.PUBLIC_URL = app_url, public_url
    api(None).post(RESET, {"email": "alice@example.org"})
    tasks.send_mail()
    (message,) = mailbox.messages
    assert expected in text_of(message)
    assert expected in text_of(message, "html")


def test_mail_without_a_frontend_has_a_curl_line_whose_body_works(mailbox: Mailbox, alice: User, api: Api) -> None:
    invite(api(alice))
    tasks.send_mail()
    text = text_of(mailbox.messages[0])
    (body,) = re.findall(r"-d '(.+?)'", text)
    wish = json.loads(body) | {"username": "dora", "password": "another long password"}
    assert f"/{text.rpartition('127.0.0.1:8000/')[2].split()[0]}" == "/api/v1/auth/invitations/accept/"
    assert api(None).post("/api/v1/auth/invitations/accept/", wish).status_code == 201


def test_mail_cannot_be_given_headers_or_markup(mailbox: Mailbox, alice: User, acme: Tenant, api: Api) -> None:
    """A name that an operator put there (F-40)."""
    Tenant.objects.update(name='Acme\r\nBcc: mallory@example.org <img src="x">')
    invite(api(alice))
    tasks.send_mail()
    (message,) = mailbox.messages
    assert message["Bcc"] is None
    assert message["Subject"] == 'Invitation to Acme Bcc: mallory@example.org <img src="x">'
    assert "<img" in text_of(message)
    assert "<img" not in text_of(message, "html")


def test_tokens_are_in_the_mail_alone(mailbox: Mailbox, alice: User, api: Api, caplog: pytest.LogCaptureFixture) -> None:
    """INV-15: neither in the database nor in the log."""
    caplog.set_level(logging.DEBUG)
    invite(api(alice))
    api(None).post(RESET, {"email": "alice@example.org"})
    tasks.send_mail()
    found = [re.findall(r'"token": "(.+?)"', text_of(message))[0] for message in mailbox.messages]
    assert len(found) == 2
    rows = [repr(list(model.objects.values())) for model in (Mail, Invitation, AuditEvent)]
    assert not [token for token in found for text in (*rows, caplog.text) if token in text or token.split(":")[-1] in text]


def test_mails_are_files_where_there_is_no_server(alice: User, api: Api, settings: Settings, tmp_path: Path) -> None:
    settings.EMAIL_BACKEND, settings.EMAIL_FILE_PATH = "config.mail.PrivateFileBackend", str(tmp_path / "mail")
    invite(api(alice))
    tasks.send_mail()
    (file,) = (tmp_path / "mail").iterdir()
    assert "To: dora@example.org" in file.read_text()
    assert (tmp_path / "mail").stat().st_mode & 0o777 == 0o700


@pytest.mark.both_databases
def test_queue_outside_of_a_transaction_is_a_bug(db: None, now: datetime) -> None:
    connection.in_atomic_block = False
    try:
        with pytest.raises(transaction.TransactionManagementError):
            outbox.queue("invitation", to="dora@example.org", now=now)
    finally:
        connection.in_atomic_block = True


# --- Who it is from, and words of several lines ---


def test_mail_is_from_the_contact_and_sent_by_us(mailbox: Mailbox, wording: Wording, now: datetime, settings: Settings) -> None:
    """The envelope and the Message-ID stay ours, for SPF and for what comes back."""
    settings.DEFAULT_FROM_EMAIL = "Strongroom <files@example.org>"
    wording("verdict", "A verdict\nAsk {{ contact }}.", "<p>Ask {{ contact }}.</p>", contact="help@acme.example")
    tell(now)
    outbox.send_due(now=now)
    (message,) = mailbox.messages
    assert (message["From"], message["Sender"]) == ("help@acme.example", "Strongroom <files@example.org>")
    assert message["Message-ID"] == f"<{Mail.objects.get().pk}@example.org>"
    assert mailbox.envelopes == [("files@example.org", ["bob@example.org"])]
    assert "Ask help@acme.example." in text_of(message)


@pytest.mark.parametrize("contact", [None, ""])
def test_mail_without_a_contact_is_from_us(mailbox: Mailbox, wording: Wording, now: datetime, contact: str | None) -> None:
    wording("verdict", "A verdict\nIt is yes.", "<p>It is yes.</p>", **({} if contact is None else {"contact": contact}))
    tell(now)
    outbox.send_due(now=now)
    (message,) = mailbox.messages
    assert (message["From"], message["Sender"]) == ("strongroom@localhost", None)


@pytest.mark.parametrize(
    "contact",
    [
        "help@acme.example\r\nBcc: mallory@example.org",
        "help@acme.example, mallory@example.org",
        "Acme <help@acme.example>",
        "Acme",
    ],
)
def test_contact_that_is_no_address_is_no_header(mailbox: Mailbox, wording: Wording, now: datetime, contact: str) -> None:
    """F-40."""
    wording("verdict", "A verdict\nIt is yes.", "<p>It is yes.</p>", contact=contact)
    tell(now)
    assert outbox.send_due(now=now) == 0
    assert mailbox.messages == []
    assert Mail.objects.get().state == "waiting"
    assert Mail.objects.get().problem


FORGED = "Yes.\r\n\r\n.\r\nBcc: mallory@example.org\u2028<b>Approved</b>\n\tby root  \n"


def test_lines_are_quoted_in_the_text_and_broken_in_the_html(mailbox: Mailbox, wording: Wording, now: datetime) -> None:
    """F-40. Words pass for nobody else's: not in the text, not as markup, and not as a header."""
    html = "<blockquote>{{ reason|linebreaksbr }}</blockquote>"
    wording("verdict", "A verdict\nThey say:\n{{ reason }}\nBye.", html, reason=outbox.QuotedText(FORGED))
    tell(now)
    outbox.send_due(now=now)
    (message,) = mailbox.messages
    assert message["Bcc"] is None
    assert text_of(message).splitlines() == [
        "They say:", "> Yes.", "> ", "> .", "> Bcc: mallory@example.org", "> <b>Approved</b>", "> by root", "Bye.",
    ]  # fmt: skip
    words = "Yes.<br><br>.<br>Bcc: mallory@example.org<br>&lt;b&gt;Approved&lt;/b&gt;<br>by root"
    assert text_of(message, "html").strip() == f"<blockquote>{words}</blockquote>"


@pytest.mark.parametrize("lines", [str, outbox.QuotedText])
def test_subject_is_one_line(mailbox: Mailbox, wording: Wording, now: datetime, lines: Callable[[str], str]) -> None:
    """F-40: by default all of a letter is, and whatever keeps its lines leaves none to the headers."""
    wording("verdict", "A verdict: {{ reason }}\nIt is yes.", "<p>It is yes.</p>", reason=lines(FORGED))
    tell(now)
    outbox.send_due(now=now)
    (message,) = mailbox.messages
    assert message["Bcc"] is None
    assert message["Subject"].startswith("A verdict: ")
    assert mailbox.envelopes == [("strongroom@localhost", ["bob@example.org"])]


# --- Copies, and what became of the mails about something ---


@pytest.fixture
def verdict(wording: Wording) -> None:
    wording("verdict", "A verdict on {{ name }}\nIt is yes.", "<p>It is yes.</p>", name="November")


def test_copies_are_in_cc_of_the_same_message(mailbox: Mailbox, verdict: None, now: datetime) -> None:
    tell(now, copies=["dora@example.org", "carol@example.org", "carol@example.org", "bob@example.org"])
    assert outbox.send_due(now=now) == 1
    (message,) = mailbox.messages
    assert (message["To"], message["Cc"], message["Bcc"]) == ("bob@example.org", "carol@example.org, dora@example.org", None)
    assert mailbox.envelopes == [("strongroom@localhost", ["bob@example.org", "carol@example.org", "dora@example.org"])]


def test_copy_that_is_refused_loses_nothing_for_the_others(
    mailbox: Mailbox, verdict: None, now: datetime, caplog: pytest.LogCaptureFixture
) -> None:
    """F-34."""
    mailbox.refused = {"carol@example.org"}
    tell(now, copies=["carol@example.org", "dora@example.org"])
    assert outbox.send_due(now=now) == 1
    assert outbox.send_due(now=now + timedelta(hours=5)) == 0
    assert mailbox.envelopes == [("strongroom@localhost", ["bob@example.org", "dora@example.org"])]
    (record,) = [record for record in caplog.records if record.message == "copies of a mail were refused"]
    assert (record.__dict__["message_id"], record.__dict__["codes"]) == (mailbox.messages[0]["Message-ID"], [550])
    assert "carol" not in caplog.text
    mail = Mail.objects.get()
    assert (mail.state, mail.copies, mail.refused) == (
        "sent", ["carol@example.org", "dora@example.org"], ["carol@example.org"],
    )  # fmt: skip


def test_refused_copy_is_noted_as_its_address_is_written(mailbox: Mailbox, verdict: None, now: datetime) -> None:
    """The server knows it by another spelling."""
    mailbox.refused = {"dora@xn--mnchen-3ya.example"}
    tell(now, copies=["carol@example.org", "dora@münchen.example"])
    assert outbox.send_due(now=now) == 1
    assert Mail.objects.get().refused == ["dora@münchen.example"]


def test_mail_that_nobody_refused_says_so(mailbox: Mailbox, verdict: None, now: datetime) -> None:
    tell(now, copies=["carol@example.org"])
    outbox.send_due(now=now)
    assert Mail.objects.get().refused == []


@pytest.mark.both_databases
def test_copy_does_not_count_as_the_mail(mailbox: Mailbox, verdict: None, now: datetime) -> None:
    """F-34. Who it is for may be refused for a while only, so that it is tried again; the copy comes with it, once."""
    mailbox.refused = {"bob@example.org"}
    tell(now, copies=["carol@example.org"])
    assert outbox.send_due(now=now) == 0
    assert mailbox.envelopes == []
    assert Mail.objects.get().problem == "SMTPRecipientsRefused"

    mailbox.refused = set()
    assert outbox.send_due(now=now + timedelta(minutes=5)) == 1
    assert mailbox.envelopes == [("strongroom@localhost", ["bob@example.org", "carol@example.org"])]


@pytest.mark.parametrize("forged", ["dora@example.org\r\nBcc: mallory@example.org", "dora@example.org, mallory@example.org"])
@pytest.mark.parametrize("field", ["to", "copies"])
def test_address_that_is_none_names_nobody_else(mailbox: Mailbox, verdict: None, now: datetime, field: str, forged: str) -> None:
    """F-40. It holds nobody up either, and is seen to have failed."""
    forgery: dict[str, Any] = {field: forged if field == "to" else [forged]}
    tell(now, **forgery)
    tell(now + timedelta(seconds=1), to="carol@example.org")
    assert outbox.send_due(now=now + timedelta(seconds=5)) == 1
    assert mailbox.envelopes == [("strongroom@localhost", ["carol@example.org"])]
    assert Mail.objects.get(sent_at=None).problem in {"ValueError", "BadHeaderError"}


@pytest.mark.both_databases
def test_states_of_the_mails_about_something(mailbox: Mailbox, verdict: None, now: datetime) -> None:
    this, that = str(uuid4()), str(uuid4())
    mailbox.refused = {"carol@example.org"}
    for number, name in enumerate(["bob", "carol", "dora"]):
        due_at = now + timedelta(days=30) if name == "dora" else None
        tell(now + number * timedelta(seconds=1), to=f"{name}@example.org", about=this, due_at=due_at)
    tell(now, about=that)
    tell(now)
    outbox.send_due(now=now + timedelta(seconds=5))
    assert [mail.state for mail in outbox.mails_about(this)] == ["sent", "waiting", "waiting"]
    Mail.objects.filter(recipient="carol@example.org").update(attempts=outbox.MAX_ATTEMPTS - 1)
    outbox.send_due(now=now + timedelta(days=9))
    assert [mail.state for mail in outbox.mails_about(this)] == ["sent", "failed", "waiting"]
    assert outbox.mails_about(that).count() == 1


@pytest.mark.both_databases
def test_once_means_once_about_each_thing(mailbox: Mailbox, verdict: None, now: datetime) -> None:
    for about in (str(uuid4()), str(uuid4())) * 2:
        tell(now, about=about, once_per=outbox.FOREVER)
    assert Mail.objects.count() == 2


# --- When sending fails ---


@pytest.mark.both_databases
def test_server_down_changes_nothing_of_the_invitation_and_the_mail_comes_later(
    no_mailbox: int, alice: User, api: Api, now: datetime, caplog: pytest.LogCaptureFixture
) -> None:
    invite(api(alice))
    tasks.send_mail()

    assert api(alice).get("/api/v1/tenants/acme/invitations/").json()["results"][0]["email"] == "dora@example.org"
    mail = Mail.objects.get()
    assert (mail.problem, mail.sent_at, mail.failed_at, mail.attempts) == ("ConnectionRefusedError", None, None, 1)
    assert "dora" not in caplog.text
    assert outbox.send_due(now=now) == 0  # it is not tried at every tick
    with Mailbox(no_mailbox) as mailbox:
        assert outbox.send_due(now=now + timedelta(minutes=5)) == 1
        assert outbox.send_due(now=now + timedelta(hours=5)) == 0
    assert mailbox.recipients == ["dora@example.org"]
    assert Mail.objects.get().problem == ""


@pytest.mark.both_databases
def test_server_that_fails_is_asked_once_a_tick(mailbox: Mailbox, alice: User, api: Api) -> None:
    """One that says nothing takes ten seconds to do so, and other ticks want the worker."""
    mailbox.is_busy = True
    for number in range(5):
        invite(api(alice), f"d{number}@example.org")
    tasks.send_mail()
    assert mailbox.conversations == 1
    assert set(Mail.objects.values_list("problem", "attempts", "lease_owner")) == {("SMTPConnectError 421", 1, "")}
    assert not Mail.objects.filter(due_at__lte=timezone.now()).exists()


@pytest.mark.both_databases
@pytest.mark.parametrize("copies", [[], ["carol@example.org"]], ids=["no copy", "a copy"])
def test_server_that_is_slow_loses_nothing(
    mailbox: Mailbox, verdict: None, now: datetime, settings: Settings, copies: list[str]
) -> None:
    """F-34."""
    settings.EMAIL_TIMEOUT, mailbox.pause = 0.2, 0.6
    tell(now, copies=copies)
    assert outbox.send_due(now=now) == 0
    assert Mail.objects.get().state == "waiting"

    settings.EMAIL_TIMEOUT, mailbox.pause = 10, 0.05
    assert outbox.send_due(now=now + timedelta(minutes=5)) == 1
    assert outbox.send_due(now=now + timedelta(hours=5)) == 0
    assert [recipients for _, recipients in mailbox.envelopes] == [["bob@example.org", *copies]]


@pytest.mark.both_databases
@pytest.mark.parametrize(("moment", "times"), [(ConnectionDrop.BEFORE_STORING, 1), (ConnectionDrop.AFTER_STORING, 2)])
def test_server_that_hangs_up_gets_the_mail_again_under_its_message_id(
    mailbox: Mailbox, verdict: None, now: datetime, moment: ConnectionDrop, times: int
) -> None:
    """F-34. Whether it kept the mail nobody can tell; one that did knows the id."""
    mailbox.connection_drop = moment
    tell(now)
    assert outbox.send_due(now=now) == 0
    assert Mail.objects.get().problem == "SMTPServerDisconnected"

    mailbox.connection_drop = None
    assert outbox.send_due(now=now + timedelta(minutes=5)) == 1
    assert outbox.send_due(now=now + timedelta(hours=5)) == 0
    assert [message["Message-ID"] for message in mailbox.messages] == [f"<{Mail.objects.get().pk}@localhost>"] * times


@pytest.mark.both_databases
def test_recipient_that_is_refused_holds_nobody_up(mailbox: Mailbox, alice: User, api: Api) -> None:
    mailbox.refused = {"d0@example.org"}
    for number in range(3):
        invite(api(alice), f"d{number}@example.org")
    tasks.send_mail()
    assert mailbox.recipients == ["d1@example.org", "d2@example.org"]
    assert Mail.objects.get(sent_at=None).problem == "SMTPRecipientsRefused"


@pytest.mark.both_databases
def test_mail_that_cannot_be_made_holds_nobody_up(mailbox: Mailbox, alice: User, api: Api, now: datetime) -> None:
    Mail.objects.create(kind="of_a_later_release", recipient="dora@example.org", created_at=now, due_at=now)
    invite(api(alice), "d1@example.org")
    tasks.send_mail()
    assert mailbox.recipients == ["d1@example.org"]
    assert Mail.objects.get(sent_at=None).problem == "KeyError"


@pytest.mark.both_databases
def test_pauses_grow_until_it_is_given_up(no_mailbox: int, alice: User, api: Api, now: datetime) -> None:
    invite(api(alice))
    Invitation.objects.update(expires_at=now + timedelta(days=30))
    tried, at = [], now + timedelta(seconds=5)
    while (mail := Mail.objects.get()).failed_at is None:
        at = max(at, mail.due_at)
        outbox.send_due(now=at)
        tried.append(at)
    pauses = [(late - early).total_seconds() for early, late in pairwise(tried)]
    assert pauses[:9] == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]
    assert timedelta(days=2.9) < tried[-1] - tried[0] < timedelta(days=3.2)
    assert outbox.send_due(now=at + timedelta(days=9)) == 0


# --- Two workers, and one that dies ---


@pytest.mark.both_databases
@pytest.mark.django_db(transaction=True)
def test_two_senders_at_once_send_each_mail_once(mailbox: Mailbox, alice: User, api: Api, now: datetime) -> None:
    """F-31, F-32."""
    for number in range(10):
        invite(api(alice), f"d{number}@example.org")
    sent = race([partial(outbox.send_due, now=now + timedelta(seconds=5))] * 4)
    assert sum(sent) == 10
    assert sorted(mailbox.recipients) == [f"d{number}@example.org" for number in range(10)]


@pytest.mark.both_databases
def test_kill_between_sending_and_noting_it_repeats_the_mail_under_its_message_id(
    mailbox: Mailbox, alice: User, api: Api, now: datetime
) -> None:
    """The one duplicate that there can be: a server that knows the id delivers it once."""
    invite(api(alice))

    def die(execute: Callable[..., Any], sql: str, *arguments: Any) -> Any:
        if sql.startswith("UPDATE") and '"sent_at"' in sql:
            raise SystemExit
        return execute(sql, *arguments)

    with pytest.raises(SystemExit), connection.execute_wrapper(die):
        tasks.send_mail()
    tasks.send_mail()  # the dead worker's lease still runs
    assert len(mailbox.messages) == 1

    assert outbox.send_due(now=now + PAUSE) == 1
    assert len({message["Message-ID"] for message in mailbox.messages}) == 1
    assert outbox.send_due(now=now + 2 * PAUSE) == 0


@pytest.mark.both_databases
def test_worker_that_is_slow_leaves_to_others_what_they_took_over(mailbox: Mailbox, alice: User, api: Api, now: datetime) -> None:
    """It claimed both ten minutes ago, and is at the first when another worker comes."""
    invite(api(alice), "d1@example.org")
    invite(api(alice), "d2@example.org")
    Mail.objects.update(due_at=now - timedelta(hours=1))
    others: list[int] = []

    def interrupt(execute: Callable[..., Any], sql: str, *arguments: Any) -> Any:
        if "tenants_invitation" in sql and not others:
            others.append(0)
            others[0] = outbox.send_due(now=timezone.now())
        return execute(sql, *arguments)

    with connection.execute_wrapper(interrupt):
        assert outbox.send_due(now=now - timedelta(minutes=10)) == 1
    assert others == [1]
    assert len(mailbox.recipients) == len(set(mailbox.recipients)) == 2


@pytest.mark.both_databases
def test_worker_whose_lease_was_taken_over_leaves_the_mail_alone(mailbox: Mailbox, alice: User, api: Api, now: datetime) -> None:
    invite(api(alice))

    def interrupt(execute: Callable[..., Any], sql: str, *arguments: Any) -> Any:
        if "tenants_invitation" in sql and sql.startswith("SELECT"):
            Mail.objects.update(lease_owner="another")
        return execute(sql, *arguments)

    with connection.execute_wrapper(interrupt):
        assert outbox.send_due(now=now + timedelta(seconds=5)) == 0
    assert Mail.objects.get().lease_owner == "another"
    assert Mail.objects.get().sent_at is None


# --- Mails whose reason is gone ---


@pytest.mark.both_databases
@pytest.mark.parametrize(
    "end",
    [
        lambda api, alice: api(alice).delete(f"/api/v1/tenants/acme/invitations/{Invitation.objects.get().pk}/"),
        lambda api, alice: Invitation.objects.update(expires_at=datetime(2020, 1, 1, tzinfo=UTC)),
        lambda api, alice: Membership.objects.filter(user=alice).delete(),
        lambda api, alice: User.objects.filter(pk=alice.pk).update(is_active=False),
        lambda api, alice: Tenant.objects.update(is_active=False),
    ],
    ids=["withdrawn", "expired", "inviter removed", "inviter deactivated", "tenant suspended"],
)
def test_invitation_that_opens_nothing_any_more_is_not_mailed(
    mailbox: Mailbox, alice: User, api: Api, end: Callable[[Api, User], object]
) -> None:
    """INV-16."""
    invite(api(alice))
    end(api, alice)
    tasks.send_mail()
    assert mailbox.messages == []
    assert not Mail.objects.exists()


@pytest.fixture
def moot(wording: Wording, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A kind of mail with nothing left to tell, until the test says that there is."""
    monkeypatch.setitem(outbox._context_builders, "verdict", lambda mail, now: None)
    return lambda: wording("verdict", "A verdict\nIt is yes.", "<p>It is yes.</p>")


@pytest.mark.both_databases
def test_mail_about_something_is_seen_to_have_been_dropped(
    mailbox: Mailbox, moot: Callable[[], None], now: datetime, settings: Settings
) -> None:
    """Whoever saw that it waits sees what became of it, also if it was tried before that."""
    this = str(uuid4())
    tell(now, about=this, copies=["carol@example.org"])
    Mail.objects.update(problem="ConnectionRefusedError", attempts=3)
    assert outbox.send_due(now=now) == 0
    (mail,) = outbox.mails_about(this)
    assert (mail.state, mail.sent_at, mail.problem, mail.lease_owner, mail.attempts) == ("dropped", None, "", "", 4)

    moot()
    assert outbox.send_due(now=now + timedelta(days=2)) == 0
    assert mailbox.messages == []


@pytest.mark.both_databases
def test_mail_about_nothing_leaves_nothing_when_it_is_dropped(mailbox: Mailbox, moot: Callable[[], None], now: datetime) -> None:
    """Anybody may have one queued, for any address: see `passwords.request_reset`."""
    tell(now)
    assert outbox.send_due(now=now) == 0
    assert not Mail.objects.exists()


@pytest.mark.both_databases
def test_mail_that_was_dropped_is_written_anew_if_there_is_a_reason_again(
    mailbox: Mailbox, moot: Callable[[], None], now: datetime
) -> None:
    this = str(uuid4())
    tell(now, about=this, once_per=outbox.FOREVER)
    outbox.send_due(now=now)
    moot()
    for _ in range(2):
        tell(now + timedelta(days=1), about=this, once_per=outbox.FOREVER)
    assert outbox.send_due(now=now + timedelta(days=1)) == 1
    assert [mail.state for mail in outbox.mails_about(this)] == ["dropped", "sent"]


@pytest.mark.both_databases
def test_mail_that_was_dropped_is_forgotten_with_the_rest(mailbox: Mailbox, moot: Callable[[], None], now: datetime) -> None:
    tell(now, about=str(uuid4()))
    outbox.send_due(now=now)
    assert outbox.delete_settled(now=now + timedelta(days=29)) == 0
    assert outbox.delete_settled(now=now + timedelta(days=31)) == 1


@pytest.mark.both_databases
def test_settled_mails_are_forgotten_after_a_month(mailbox: Mailbox, alice: User, api: Api, now: datetime) -> None:
    invite(api(alice), "d1@example.org")
    tasks.send_mail()
    invite(api(alice), "d2@example.org")
    tasks.tick()
    assert Mail.objects.count() == 2
    Mail.objects.update(created_at=now - timedelta(days=31))
    tasks.tick()
    assert Mail.objects.get().recipient == "d2@example.org"
