"""The mails about a request: to whoever is to decide next, and to its requester when there is something to tell (F-34).

They name no file: types, ids and people only (INV-15). What became of each is shown on the request, for as long as it is kept.
"""

import logging
import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, Final

from django.conf import settings
from django.db import transaction
from django.db.models import OuterRef, Q, Subquery

from egress import access
from egress.models import EgressRequest, Transition
from egress.states import State
from tenants.models import Mail, Role, User
from tenants.work import outbox


log = logging.getLogger(__name__)

REVIEW: Final = "egress_review"  # kinds of mail
REMINDER: Final = "egress_reminder"
OUTCOME: Final = "egress_outcome"
REMIND_BEFORE: Final = timedelta(days=3)
MAX_LISTED_TYPES: Final = 20  # that a mail names
EXTENSION: Final = re.compile(r"[a-z0-9_+-]{1,10}")  # what follows a dot and is longer, or has spaces, is rather a part of a name

# In the subject, in the text, and what the requester does next.
OUTCOMES: Final[dict[str, tuple[str, str, str]]] = {
    State.RELEASED: (
        "Approved, ready to download",
        "was approved, and its package is ready",
        "The package can be downloaded {times} by {downloaders}, until {until}.",
    ),
    State.REJECTED: ("Rejected", "was rejected", "Nothing was released. A new request may be submitted that heeds the reason."),
    State.RETURNED: (
        "Returned for changes",
        "was returned for changes",
        "Change what the reason asks for and submit it again until {deadline}, or withdraw it. After that it ends by itself.",
    ),
    State.EXPIRED: ("Expired", "has expired", "Nothing was released. A new request may be submitted."),
    State.FAILED: (
        "Failed, nothing was released",
        "was approved, but its package could not be built",
        "Wait for the operators, who have been told and can have it built again, or withdraw the request.",
    ),
    State.REVOKED: (
        "Revoked",
        "was revoked after its release",
        "The package cannot be downloaded any more. Before anything that was downloaded earlier is used, ask whoever revoked it.",
    ),
}
EXTENDED_OUTCOME: Final = ("Extended", "was extended after its release", OUTCOMES[State.RELEASED][2])
UNAVAILABLE_OUTCOME: Final = (  # a release of which nothing is left to be had when it is told of
    "Approved, and over by now",
    "was approved, and its package was released",
    "The package cannot be downloaded any more: its time is over, or it was downloaded as often as was approved.",
)
# What others do next, where it is not what the requester does.
NEXT_STEPS_FOR_OTHERS: Final[dict[str, str]] = {
    State.RETURNED: "It is the requester's turn until {deadline}. After that it ends by itself.",
    State.FAILED: "{told} have been told. An operator can have it built again, whoever may decide as {last_role} can return it, "
    "and the requester can withdraw it. Otherwise it ends by itself on {deadline}.",
}
NEXT_STEPS_FOR_OPERATORS: Final[dict[str, str]] = {
    State.FAILED: "The reason is the problem of the request, too. Once it is seen to, have the package built again: with the "
    "button on the request's page in the admin, or by POST {api}/egress/requests/{id}/retry/. Otherwise it ends by itself on "
    "{deadline}.",
}
ABOUT_PACKAGE: Final = (State.RELEASED, State.REVOKED)


def announce(request: EgressRequest, *, now: datetime) -> None:
    """Queues who is to hear of the step that was just written, in its transaction.

    Who decided first has a copy of what the requester gets. Everybody else has a mail of their own, so that no mail tells who the
    operators are, or who else may fetch the package.
    """
    if request.status == State.IN_REVIEW:
        _queue_action(REVIEW, request, now=now)
    if request.status not in OUTCOMES:
        return
    requester, copies, apart = _requester(request), _deciders(request, stage=0), _other_recipients(request)
    if requester:
        _queue_outcome(request, requester, copies, now=now)
        apart -= copies | {requester}
    else:
        apart |= copies
    for address in sorted(apart):
        _queue_outcome(request, address, (), now=now)


def remind(*, now: datetime) -> None:
    """Once for each step, when its deadline is near: whoever has to do something about it."""
    waiting = [State.IN_REVIEW, State.RETURNED, State.FAILED]
    open_ones = EgressRequest.objects.filter(status__in=waiting, tenant__is_active=True)
    near = open_ones.filter(expires_at__gt=now, expires_at__lte=now + REMIND_BEFORE).select_related("tenant").defer("manifest")
    asked_at = Transition.objects.filter(request=OuterRef("pk"), number=OuterRef("step")).values("at")
    late = [request for request in near.annotate(asked_at=Subquery(asked_at)) if _is_reminder_due(request, request.asked_at, now)]
    mails = Mail.objects.filter(kind=REMINDER, about__in=[str(request.pk) for request in late], is_dropped=False)
    reminded = {(about, str(step)) for about, step in mails.values_list("about", "facts__step").distinct()}
    for request in late:
        if (str(request.pk), str(request.step)) in reminded:
            continue
        try:
            with transaction.atomic():
                _queue_action(REMINDER, request, now=now)
        except Exception:  # one request must not keep the rest from going on
            log.exception("nobody was reminded of an egress request", extra={"request": str(request.pk)})


def _is_reminder_due(request: EgressRequest, asked_at: datetime, now: datetime) -> bool:
    """More than half of the time is over that there was when they were asked: a reminder does not follow on its heels."""
    return request.expires_at is not None and now - asked_at >= request.expires_at - now


def _queue_action(kind: str, request: EgressRequest, *, now: datetime) -> None:
    for address in sorted(_action_recipients(request)):
        outbox.queue(kind, to=address, now=now, once_in=outbox.EVER, about=str(request.pk), step=str(request.step))


def _queue_outcome(request: EgressRequest, address: str, copies: Iterable[str], *, now: datetime) -> None:
    outbox.queue(OUTCOME, to=address, copies=copies, now=now, about=str(request.pk), step=str(request.step))


# --- To whom: who is in the tenant, and active, at this moment (INV-16) ---


def _action_recipients(request: EgressRequest) -> set[str]:
    """Who has to act next; the tenant's admins if there is nobody who may decide."""
    requester = _member_emails(request, user=request.requester_id)
    if request.status == State.RETURNED:
        return requester
    if request.status == State.FAILED:
        return requester | _operators()
    admins = request.tenant.memberships.all().of_people().holding(Role.ADMIN)
    return _reviewers(request) or set(admins.values_list("user__email", flat=True))


def _other_recipients(request: EgressRequest) -> set[str]:
    """Who hears of what became of it besides the requester and who decided first."""
    if request.status == State.FAILED:
        return _deciders(request) | _operators()
    return _downloaders(request) if request.status in ABOUT_PACKAGE else set()


def _reviewers(request: EgressRequest) -> set[str]:
    return set(access.reviewers(request).values_list("email", flat=True))


def _requester(request: EgressRequest) -> str:
    """Empty if they are gone."""
    return next(iter(_member_emails(request, user=request.requester_id)), "")


def _deciders(request: EgressRequest, **which: Any) -> set[str]:
    """Whose decisions of this round stand."""
    decided = request.decisions.filter(round=request.round, voided_at=None, **which)
    return _member_emails(request, user__in=decided.values("by"))


def _downloaders(request: EgressRequest) -> set[str]:
    """Whose role the policy names for the package."""
    people = request.tenant.memberships.all().of_people()
    roles = set(request.policy["downloaders"]) - {access.REQUESTER}
    return {address for role in roles for address in people.holding(role).values_list("user__email", flat=True)}


def _member_emails(request: EgressRequest, **whose: Any) -> set[str]:
    return set(request.tenant.memberships.all().of_people().filter(**whose).values_list("user__email", flat=True))


def _operators() -> set[str]:
    people = User.objects.filter(is_superuser=True, is_active=True).exclude(email="")
    return set(people.values_list("email", flat=True))


def _still_entitled(addresses: Iterable[str], request: EgressRequest) -> list[str]:
    """Those of them who may hear of the request still."""
    members = Q(memberships__tenant=request.tenant_id, memberships__tenant__is_active=True)
    people = User.objects.filter(Q(is_superuser=True) | members, email__in=addresses, is_active=True)
    return sorted(set(people.values_list("email", flat=True)))


# --- What they say, when they are sent ---


@outbox.letter(REVIEW)
@outbox.letter(REMINDER)
def _fill_action(mail: Mail, now: datetime) -> outbox.Letter | None:
    """Only while it is still theirs to do."""
    found = EgressRequest.objects.select_related("tenant").filter(tenant__is_active=True)
    request = found.filter(pk=mail.about, step=mail.facts["step"]).first()
    if request is None or request.expires_at is None or mail.recipient not in _action_recipients(request):
        return None
    step = request.steps.get(number=request.step)
    earlier = request.decisions.filter(round=request.round, voided_at=None).order_by("stage")
    return _request_facts(request, request.round) | {
        "ask": _requested_action(request, mail.recipient),
        "role": _readable(request.awaited_role),
        "stage": str(request.stage + 1),
        "stages": str(request.stage_count),
        "earlier": ", ".join(earlier.values_list("by_email", flat=True)),
        "came_back": step.reason if step.from_status == State.APPROVED and request.status == State.IN_REVIEW else "",
        "problem": request.problem,
        "justification": outbox.Lines(request.justification),
        "deadline": format_moment(request.expires_at),
        "day": f"{request.expires_at:%-d %B}",
    }


def _requested_action(request: EgressRequest, address: str) -> str:
    """Of one of those who are `_action_recipients`."""
    if request.status == State.RETURNED:
        return "change"
    if request.status == State.FAILED:
        return "rebuild" if address in _operators() else "withdraw"
    return "decide" if address in _reviewers(request) else "appoint"


@outbox.letter(OUTCOME)
def _fill_outcome(mail: Mail, now: datetime) -> outbox.Letter | None:
    """What happened stays so, whatever came after it; but nothing is said to be ready that is not there any more."""
    request = EgressRequest.objects.select_related("tenant").get(pk=mail.about)
    step = request.steps.get(number=mail.facts["step"])
    if not _is_entitled(mail, request, step) or (step.to_status, request.status) == (State.RELEASED, State.REVOKED):
        return None
    if (copies := _still_entitled(mail.copies, request)) != mail.copies:
        mail.copies = copies
        mail.fenced().update(copies=copies)
    headline, happened, following = _outcome_text(request, step, mail.recipient, now)
    return _request_facts(request, step.round) | {
        "headline": headline,
        "happened": happened,
        "at": format_moment(step.at),
        "by": step.by_name if step.by_id is not None else "",
        "whose": "Reason" if step.reason else "The decisions",
        "reason": outbox.Lines(step.reason or _approvals(request, step)),
        "next": following,
    }


def _is_entitled(mail: Mail, request: EgressRequest, step: Transition) -> bool:
    """Whether whoever it is for may hear of it still: of a package not without the role that they were told for (INV-16)."""
    if not _still_entitled([mail.recipient], request):
        return False
    if step.to_status not in ABOUT_PACKAGE:
        return True
    return mail.recipient in {_requester(request)} | _deciders(request, stage=0) | _downloaders(request)


def _outcome_text(request: EgressRequest, step: Transition, address: str, now: datetime) -> tuple[str, str, str]:
    """As in OUTCOMES, to this reader, at this moment."""
    if step.to_status == State.RELEASED and _is_unavailable(request, now):
        return UNAVAILABLE_OUTCOME
    headline, happened, following = (
        EXTENDED_OUTCOME if step.from_status == State.RELEASED == step.to_status else OUTCOMES[step.to_status]
    )
    if request.status != step.to_status:
        return headline, happened, f"It is {_readable(request.status)} by now."
    if address != _requester(request):
        following = NEXT_STEPS_FOR_OTHERS.get(step.to_status, following)
        if address in _operators():
            following = NEXT_STEPS_FOR_OPERATORS.get(step.to_status, following)
    return headline, happened, following.format(**_outcome_facts(request))


def _is_unavailable(request: EgressRequest, now: datetime) -> bool:
    """Nothing of the release is left to be had; the tick that closes it may come behind that."""
    return request.downloads_left <= 0 or request.available_until is None or request.available_until <= now


def _outcome_facts(request: EgressRequest) -> dict[str, str]:
    named = request.policy["downloaders"]
    may = ["the requester" if each == access.REQUESTER else f"people with the role {_readable(each)}" for each in named]
    return {
        "times": "once" if request.max_downloads == 1 else f"{request.max_downloads} times",
        "downloaders": " or ".join(may),
        "until": format_moment(request.available_until) if request.available_until else "",
        "deadline": format_moment(request.expires_at) if request.expires_at else "",
        "told": "The requester and the operators" if _requester(request) else "The operators",
        "last_role": _readable(request.stages[-1]),
        "api": _api(),
        "id": str(request.pk),
    }


def _approvals(request: EgressRequest, step: Transition) -> str:
    """Who approved and why, a line for each: nobody's words begin a line that could pass for another's."""
    decisions = request.decisions.filter(round=step.round, voided_at=None).order_by("stage")
    return "\n".join(f"{each.by_name} ({_readable(each.role)}): {' '.join(each.reason.split())}" for each in decisions)


def _request_facts(request: EgressRequest, round_number: int) -> outbox.Letter:
    app = request.policy["app_url"].rstrip("/") or settings.APP_URL
    names = list(request.items.filter(round=round_number).values_list("filename", flat=True))
    return {
        "id": str(request.pk),
        "tenant": request.tenant.name,
        "collection": request.collection_name,
        "requester": _requester(request) or request.requester_name,
        "types": _list_types(names),
        "files": "1 file" if len(names) == 1 else f"{len(names):,} files",
        "contact": request.policy["contact_email"],
        "link": f"{app}/egress/{request.pk}" if app else "",
        "api": _api(),
    }


def _api() -> str:
    return f"{settings.PUBLIC_URL or f'http://127.0.0.1:{settings.PORT}'}/api/v1"


def _list_types(names: list[str]) -> str:
    types = {access.file_type(name) for name in names}
    known = sorted(each for each in types if EXTENSION.fullmatch(each))
    shown = known[:MAX_LISTED_TYPES] + (["other"] if len(known) < len(types) or len(known) > MAX_LISTED_TYPES else [])
    return ", ".join(shown)


def format_moment(moment: datetime) -> str:
    return f"{moment:%-d %B %Y, %H:%M} UTC"


def _readable(name: str) -> str:
    return name.replace("_", " ")
