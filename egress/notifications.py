"""Mails about egress requests: to the users who must act next, and to the requester and others about the outcome (F-34).

A mail contains ids, file types and users, but no file names (INV-15). The request shows the delivery status of its mails.
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

REVIEW: Final = "egress_review"  # kind of mail, also the name of its template
REMINDER: Final = "egress_reminder"
OUTCOME: Final = "egress_outcome"
REMIND_BEFORE: Final = timedelta(days=3)
MAX_LISTED_TYPES: Final = 20
EXTENSION: Final = re.compile(r"[a-z0-9_+-]{1,10}")  # Other text after a dot may be part of a file name.

# By new status: the headline of the subject, the event in the text, and the next steps of the requester.
OUTCOMES: Final[dict[str, tuple[str, str, str]]] = {
    State.RELEASED: (
        "Approved, ready to download",
        "was approved, and its package is ready",
        "The package can be downloaded {times} by {downloaders}, until {until}.",
    ),
    State.REJECTED: (
        "Rejected",
        "was rejected",
        "Nothing was released. The requester can submit a new request that addresses the reason.",
    ),
    State.RETURNED: (
        "Returned for changes",
        "was returned for changes",
        "Make the requested changes and submit the request again, or withdraw it. Otherwise it expires on {deadline}.",
    ),
    State.EXPIRED: ("Expired", "has expired", "Nothing was released. The requester can submit a new request."),
    State.FAILED: (
        "Failed, nothing was released",
        "was approved, but its package could not be built",
        "Wait for the operators, who have been notified and can build the package again, or withdraw the request.",
    ),
    State.REVOKED: (
        "Revoked",
        "was revoked after its release",
        "The package can no longer be downloaded. Before you use files from an earlier download, ask the person who revoked it.",
    ),
}
EXTENDED_OUTCOME: Final = ("Extended", "was extended after its release", OUTCOMES[State.RELEASED][2])
UNAVAILABLE_OUTCOME: Final = (  # for a release whose package is no longer available when the mail is sent
    "Approved, no longer available",
    "was approved, and its package was released",
    "The package can no longer be downloaded: its download window has ended, or it has reached its number of downloads.",
)
# Next steps for readers other than the requester, where they differ.
NEXT_STEPS_FOR_OTHERS: Final[dict[str, str]] = {
    State.RETURNED: "The requester can change the request and submit it again. Otherwise it expires on {deadline}.",
    State.FAILED: "{notified} have been notified. An operator can build the package again, a reviewer with the role {last_role} "
    "can return the request, and the requester can withdraw it. Otherwise it expires on {deadline}.",
}
NEXT_STEPS_FOR_OPERATORS: Final[dict[str, str]] = {
    State.FAILED: "Resolve the problem that the reason describes. Then build the package again with the button on the request's "
    "page in the admin, or with POST {api}/egress/requests/{id}/retry/. Otherwise the request expires on {deadline}.",
}
ABOUT_PACKAGE: Final = (State.RELEASED, State.REVOKED)


def announce(request: EgressRequest, *, now: datetime) -> None:
    """Queues the mails about the latest transition, in the transaction of the caller.

    The reviewer of the first stage gets a copy of the requester's mail. Each other recipient gets a separate mail, so that no
    mail discloses the operators or the other users who may download the package.
    """
    if request.status == State.IN_REVIEW:
        _queue_action(REVIEW, request, now=now)
    if request.status not in OUTCOMES:
        return
    requester, copies, others = _requester(request), _deciders(request, stage=0), _other_recipients(request)
    if requester:
        _queue_outcome(request, requester, copies, now=now)
        others -= copies | {requester}
    else:
        others |= copies
    for address in sorted(others):
        _queue_outcome(request, address, (), now=now)


def remind(*, now: datetime) -> None:
    """Reminds the users who must act on a request near its deadline, once for each transition."""
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
        except Exception:  # The other requests must not wait for a faulty one.
            log.exception("egress reminder could not be queued", extra={"request": str(request.pk)})


def _is_reminder_due(request: EgressRequest, asked_at: datetime, now: datetime) -> bool:
    """Whether at least half of the time until the deadline has passed. Avoids a reminder soon after the first mail."""
    return request.expires_at is not None and now - asked_at >= request.expires_at - now


def _queue_action(kind: str, request: EgressRequest, *, now: datetime) -> None:
    for address in sorted(_action_recipients(request)):
        outbox.queue(kind, to=address, now=now, once_per=outbox.FOREVER, about=str(request.pk), step=str(request.step))


def _queue_outcome(request: EgressRequest, address: str, copies: Iterable[str], *, now: datetime) -> None:
    outbox.queue(OUTCOME, to=address, copies=copies, now=now, about=str(request.pk), step=str(request.step))


# --- Recipients: active users who are currently in the tenant (INV-16) ---


def _action_recipients(request: EgressRequest) -> set[str]:
    """The users who must act next. In review: the reviewers, or the tenant's admins if no reviewer may decide."""
    requester = _member_emails(request, user=request.requester_id)
    if request.status == State.RETURNED:
        return requester
    if request.status == State.FAILED:
        return requester | _operators()
    admins = request.tenant.memberships.all().of_active_people().with_role(Role.ADMIN)
    return _reviewers(request) or set(admins.values_list("user__email", flat=True))


def _other_recipients(request: EgressRequest) -> set[str]:
    """The users to notify of the outcome, besides the requester and the reviewer of the first stage."""
    if request.status == State.FAILED:
        return _deciders(request) | _operators()
    return _downloaders(request) if request.status in ABOUT_PACKAGE else set()


def _reviewers(request: EgressRequest) -> set[str]:
    return set(access.reviewers(request).values_list("email", flat=True))


def _requester(request: EgressRequest) -> str:
    """The address of the requester. Empty if they are no longer an active member."""
    return next(iter(_member_emails(request, user=request.requester_id)), "")


def _deciders(request: EgressRequest, **which: Any) -> set[str]:
    """The reviewers with a valid decision in the current round."""
    decided = request.decisions.filter(round=request.round, voided_at=None, **which)
    return _member_emails(request, user__in=decided.values("by"))


def _downloaders(request: EgressRequest) -> set[str]:
    """The users with a role that the policy allows to download the package."""
    people = request.tenant.memberships.all().of_active_people()
    roles = set(request.policy["downloaders"]) - {access.REQUESTER}
    return {address for role in roles for address in people.with_role(role).values_list("user__email", flat=True)}


def _member_emails(request: EgressRequest, **whose: Any) -> set[str]:
    return set(request.tenant.memberships.all().of_active_people().filter(**whose).values_list("user__email", flat=True))


def _operators() -> set[str]:
    people = User.objects.filter(is_superuser=True, is_active=True).exclude(email="")
    return set(people.values_list("email", flat=True))


def _still_entitled(addresses: Iterable[str], request: EgressRequest) -> list[str]:
    """The addresses whose users may still receive mails about the request."""
    members = Q(memberships__tenant=request.tenant_id, memberships__tenant__is_active=True)
    people = User.objects.filter(Q(is_superuser=True) | members, email__in=addresses, is_active=True)
    return sorted(set(people.values_list("email", flat=True)))


# --- Content, filled in when a mail is sent ---


@outbox.context_builder(REVIEW)
@outbox.context_builder(REMINDER)
def _fill_action(mail: Mail, now: datetime) -> outbox.Context | None:
    """The content for a user who must act. None, which drops the mail, if the request has moved or others must act now."""
    found = EgressRequest.objects.select_related("tenant").filter(tenant__is_active=True)
    request = found.filter(pk=mail.about, step=mail.facts["step"]).first()
    if request is None or request.expires_at is None or mail.recipient not in _action_recipients(request):
        return None
    step = request.steps.get(number=request.step)
    earlier = request.decisions.filter(round=request.round, voided_at=None).order_by("stage")
    return _request_facts(request, request.round) | {
        "action": _requested_action(request, mail.recipient),
        "role": _readable(request.awaited_role),
        "stage": str(request.stage + 1),
        "stages": str(request.stage_count),
        "earlier": ", ".join(earlier.values_list("by_email", flat=True)),
        "review_reason": step.reason if step.from_status == State.APPROVED and request.status == State.IN_REVIEW else "",
        "problem": request.problem,
        "justification": outbox.QuotedText(request.justification),
        "deadline": format_moment(request.expires_at),
        "day": f"{request.expires_at:%-d %B}",
    }


def _requested_action(request: EgressRequest, address: str) -> str:
    """The action that the mail requests of this recipient."""
    if request.status == State.RETURNED:
        return "change"
    if request.status == State.FAILED:
        return "rebuild" if address in _operators() else "withdraw"
    return "decide" if address in _reviewers(request) else "appoint"


@outbox.context_builder(OUTCOME)
def _fill_outcome(mail: Mail, now: datetime) -> outbox.Context | None:
    """The content about an outcome. None, which drops the mail, if a release has been revoked or the recipient lost the right."""
    request = EgressRequest.objects.select_related("tenant").get(pk=mail.about)
    step = request.steps.get(number=mail.facts["step"])
    if not _is_entitled(mail, request, step) or (step.to_status, request.status) == (State.RELEASED, State.REVOKED):
        return None
    if (copies := _still_entitled(mail.copies, request)) != mail.copies:
        mail.copies = copies
        mail.fenced().update(copies=copies)
    headline, event, next_steps = _outcome_text(request, step, mail.recipient, now)
    return _request_facts(request, step.round) | {
        "headline": headline,
        "event": event,
        "at": format_moment(step.at),
        "by": step.by_name if step.by_id is not None else "",
        "reason_title": "Reason" if step.reason else "Decisions",
        "reason": outbox.QuotedText(step.reason or _approvals(request, step)),
        "next_steps": next_steps,
    }


def _is_entitled(mail: Mail, request: EgressRequest, step: Transition) -> bool:
    """Whether the recipient may still receive this mail. Mails about a package require the role of a downloader (INV-16)."""
    if not _still_entitled([mail.recipient], request):
        return False
    if step.to_status not in ABOUT_PACKAGE:
        return True
    return mail.recipient in {_requester(request)} | _deciders(request, stage=0) | _downloaders(request)


def _outcome_text(request: EgressRequest, step: Transition, address: str, now: datetime) -> tuple[str, str, str]:
    """Headline, event and next steps, as in `OUTCOMES`, for this recipient at this time."""
    if step.to_status == State.RELEASED and _is_unavailable(request, now):
        return UNAVAILABLE_OUTCOME
    headline, event, next_steps = (
        EXTENDED_OUTCOME if step.from_status == State.RELEASED == step.to_status else OUTCOMES[step.to_status]
    )
    if request.status != step.to_status:
        return headline, event, f"None. The request is now {_readable(request.status)}."
    if address != _requester(request):
        next_steps = NEXT_STEPS_FOR_OTHERS.get(step.to_status, next_steps)
        if address in _operators():
            next_steps = NEXT_STEPS_FOR_OPERATORS.get(step.to_status, next_steps)
    return headline, event, next_steps.format(**_outcome_facts(request))


def _is_unavailable(request: EgressRequest, now: datetime) -> bool:
    """Whether the package can no longer be downloaded. The tick that closes the request may run later."""
    return request.downloads_left <= 0 or request.available_until is None or request.available_until <= now


def _outcome_facts(request: EgressRequest) -> dict[str, str]:
    named = request.policy["downloaders"]
    may = ["the requester" if each == access.REQUESTER else f"users with the role {_readable(each)}" for each in named]
    return {
        "times": "once" if request.max_downloads == 1 else f"{request.max_downloads} times",
        "downloaders": " or ".join(may),
        "until": format_moment(request.available_until) if request.available_until else "",
        "deadline": format_moment(request.expires_at) if request.expires_at else "",
        "notified": "The requester and the operators" if _requester(request) else "The operators",
        "last_role": _readable(request.stages[-1]),
        "api": _api(),
        "id": str(request.pk),
    }


def _approvals(request: EgressRequest, step: Transition) -> str:
    """One line for each approval. Joins the lines of a reason, so that it cannot imitate another approval."""
    decisions = request.decisions.filter(round=step.round, voided_at=None).order_by("stage")
    return "\n".join(f"{each.by_name} ({_readable(each.role)}): {' '.join(each.reason.split())}" for each in decisions)


def _request_facts(request: EgressRequest, round_number: int) -> outbox.Context:
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
    """A time in UTC, as mails show it: 1 December 2026, 09:30 UTC."""
    return f"{moment:%-d %B %Y, %H:%M} UTC"


def _readable(name: str) -> str:
    return name.replace("_", " ")
