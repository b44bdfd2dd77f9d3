"""Who may see an egress request, and who may do what to it. Each `check_can_x` raises; `allowed_actions` asks the same ones.

A tenant's requests are seen by who made them, by who holds a role of one of their stages, by its admins and auditors, and once
they are released by whom the policy lets fetch them; by superusers, who decide nothing. Bytes of staged files are for those who
decide, and the package for whom the policy names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from django.db.models import Exists, OuterRef, Prefetch, Q, QuerySet, Sum, TextField
from django.db.models.fields.json import KeyTransform
from django.db.models.functions import Cast
from django.utils import timezone
from rest_framework.exceptions import APIException

from egress import errors
from egress.models import Contributor, Decision, EgressPolicy, EgressRequest, ReadReceipt, StagedFile
from egress.states import TRANSITIONS, State
from files.errors import NotOpen
from tenants import access as people
from tenants.access import Principal
from tenants.errors import Invalid, NotFound, Refused
from tenants.models import SERVICE_ROLES, Mail, Membership, Role, Tenant, User
from tenants.request_context import tenant_id
from tenants.work import outbox


SHOWN: Final = ("number", "filename", "content_type", "length", "sha256", "status", "wiped_at")  # of an item
REQUESTER: Final = "requester"  # among a policy's downloaders


@dataclass(frozen=True)
class Actor:
    """Somebody, and what they are at this moment."""

    user: User
    principal: Principal

    def roles_in(self, request: EgressRequest) -> frozenset[str]:
        return self.principal.roles.get(request.tenant_id, frozenset())

    def is_requester(self, request: EgressRequest) -> bool:
        return request.requester_id == self.user.pk

    @property
    def is_person(self) -> bool:
        return self.user.key is None and self.user.service_of_id is None


def actor_of(user: User) -> Actor:
    return Actor(user, people.principal_of(user))


# --- Seeing ---


def visible_requests(user: User) -> QuerySet[EgressRequest]:
    principal = people.principal_of(user)
    current = [
        Prefetch("decisions", Decision.objects.order_by("at", "pk")),
        Prefetch("contributors", Contributor.objects.all()),
    ]
    requests = EgressRequest.objects.select_related("tenant").prefetch_related(*current).defer("manifest")
    if principal.is_superuser:
        return requests
    there = Q(tenant__in=principal.holding(Role.ADMIN, Role.AUDITOR)) | Q(tenant__in=list(principal.roles), requester=user.pk)
    for tenant, held in principal.roles.items():
        for role in held.difference(SERVICE_ROLES):
            there |= Q(tenant=tenant, roles__contains=f'"{role}"')
        for role in held - {REQUESTER}:
            there |= Q(tenant=tenant, who__contains=f'"{role}"', released_at__isnull=False)
    policy = {name: Cast(KeyTransform(key, "policy"), TextField()) for name, key in (("roles", "stages"), ("who", "downloaders"))}
    return requests.alias(**policy).filter(there)


def get_request(user: User, request_id: str) -> EgressRequest:
    request = visible_requests(user).filter(pk=people.uuid_in(request_id)).first()
    if request is None:
        raise NotFound
    tenant_id.set(str(request.tenant_id))
    return request


def get_released(user: User, request_id: str) -> EgressRequest:
    """One that has a manifest, whatever became of its package since."""
    request = get_request(user, request_id)
    if not request.manifest:
        raise NotFound
    return request


def get_detail(user: User, request_id: str, *, round_number: int | None = None) -> EgressRequest:
    """With all that there is to know of it, on attributes of its own. Its files are those of that round, or of the last."""
    request: Any = get_request(user, request_id)
    if round_number is not None and round_number > request.round:
        raise Invalid("round", f"The request is in round {request.round}.", code="no_such_round")
    request.shown_round = round_number or request.round
    request.shown_items = request.items.filter(round=request.shown_round).order_by("number").values(*SHOWN)
    opened = ReadReceipt.objects.filter(item__request=request, item__round=request.shown_round).order_by("first_at")
    request.opened = opened.values_list("item__number", "by_name", "first_at")
    request.progress_made = _progress(request)
    request.timeline = request.steps.order_by("number")
    request.downloads_made = request.downloads.order_by("granted_at")
    request.notifications = _notifications(user, request)
    found: EgressRequest = request
    return found


def _notifications(user: User, request: EgressRequest) -> QuerySet[Mail]:
    """What became of its mails. Who the operators are is nobody's business in the tenant."""
    mails = outbox.mails_about(str(request.pk))
    if people.principal_of(user).is_superuser:
        return mails
    operators = User.objects.filter(is_superuser=True).exclude(memberships__tenant=request.tenant_id)
    return mails.exclude(recipient__in=operators.values("email"))


def _progress(request: EgressRequest) -> dict[str, int] | None:
    """How many bytes the worker has behind it, of how many."""
    if request.status == State.SUBMITTED:
        staged = request.items.filter(round=request.round, status=StagedFile.Status.STAGED)
        return {"done": staged.aggregate(sum=Sum("length", default=0))["sum"], "of": request.total_length}
    if request.status == State.APPROVED:
        return {"done": min(request.packed, request.total_length), "of": request.total_length}
    return None


def file_types(request: EgressRequest) -> list[str]:
    """The distinct extensions of the round's files."""
    names = request.items.filter(round=request.round).values_list("filename", flat=True)
    return sorted({file_type(name) for name in names} - {""})


def file_type(filename: str) -> str:
    """The last extension, in lower case; empty for none."""
    stem, dot, extension = filename.rpartition(".")
    return extension.lower() if dot and stem else ""


def get_item(user: User, request_id: str, number: int) -> StagedFile:
    """Of the round that the request is in."""
    request = get_request(user, request_id)
    item = request.items.select_related("file__collection__key").filter(round=request.round, number=number).first()
    if item is None:
        raise NotFound
    item.request = request
    return item


def awaiting(requests: QuerySet[EgressRequest], user: User) -> QuerySet[EgressRequest]:
    """Those of them that the user can decide on now."""
    theirs = Q(pk__in=[])
    for tenant, held in people.principal_of(user).roles.items():
        theirs |= Q(tenant=tenant, awaited_role__in=held)
    here = {"request": OuterRef("pk"), "round": OuterRef("round")}
    return (
        requests.filter(theirs, status=State.IN_REVIEW)
        .exclude(requester=user.pk)
        .exclude(Exists(Contributor.objects.filter(user=user.pk, **here)))
        .exclude(Exists(Decision.objects.filter(by=user.pk, voided_at=None, **here)))
    )


def sees_collection(actor: Actor, request: EgressRequest) -> bool:
    """Whether the collection is there for them. Roles of stages see none; somebody who lost it since finds nothing there."""
    if request.collection_id is None:
        return False
    return actor.is_requester(request) or bool(actor.roles_in(request) & {Role.ADMIN, Role.AUDITOR})


# --- Deciding ---


def check_can_decide(actor: Actor, request: EgressRequest) -> None:
    """At this stage, at this moment."""
    _check_reviewer(actor, request)
    if request.status != State.IN_REVIEW:
        raise errors.WrongState(request.status)
    if request.awaited_role not in actor.roles_in(request):
        raise errors.NotYourStage(request.awaited_role)
    if any(decision.by_id == actor.user.pk for decision in standing_decisions(request)):
        raise errors.AlreadyDecided


def check_can_send_back(actor: Actor, request: EgressRequest) -> None:
    """What failed, to its requester: whoever may decide at its last stage."""
    _check_reviewer(actor, request)
    if request.status != State.FAILED:
        raise errors.WrongState(request.status)
    _check_last_stage(actor, request)


def _check_reviewer(actor: Actor, request: EgressRequest) -> None:
    if not actor.is_person:
        raise errors.PersonOnly
    if not actor.roles_in(request) & set(request.stages):
        raise errors.NotAReviewer
    if actor.is_requester(request):
        raise errors.OwnRequest
    if is_contributor(actor.user.pk, request):
        raise errors.OwnContribution


def _check_last_stage(actor: Actor, request: EgressRequest) -> None:
    if request.stages[-1] not in actor.roles_in(request):
        raise Refused(f"This takes the role {request.stages[-1]}.")


def standing_decisions(request: EgressRequest) -> list[Decision]:
    """Of this round, without those that are void."""
    return [each for each in request.decisions.all() if each.round == request.round and each.voided_at is None]


def is_contributor(user_id: int, request: EgressRequest) -> bool:
    return any(each.round == request.round and each.user_id == user_id for each in request.contributors.all())


def still_counts(decision: Decision, request: EgressRequest) -> bool:
    """Whether whoever approved may still approve, at this moment."""
    user = User.objects.filter(pk=decision.by_id, service_of=None).first()
    if user is None or user.pk == request.requester_id or is_contributor(user.pk, request):
        return False
    return decision.role in people.principal_of(user).roles.get(request.tenant_id, ())


def reviewers(request: EgressRequest) -> QuerySet[User]:
    """Who may decide at the stage that the request is at."""
    in_round = {"request": request, "round": request.round}
    return (
        User.objects.filter(memberships__in=_holders(request.tenant, request.awaited_role))
        .exclude(pk=request.requester_id)
        .exclude(pk__in=Contributor.objects.filter(**in_round).values("user"))
        .exclude(pk__in=Decision.objects.filter(**in_round, voided_at=None).values("by"))
    )


def _holders(tenant: Tenant, role: str) -> QuerySet[Membership]:
    return tenant.memberships.all().of_people().holding(role)


# --- The requester's ---


def check_can_withdraw(actor: Actor, request: EgressRequest) -> None:
    _check_requester(actor, request)
    if State.WITHDRAWN not in TRANSITIONS[State(request.status)]:
        raise errors.WrongState(request.status)


def check_can_resubmit(actor: Actor, request: EgressRequest) -> None:
    _check_requester(actor, request)
    if request.status != State.RETURNED:
        raise errors.WrongState(request.status)
    check_can_submit(actor, request.tenant)
    if request.collection_id is None:
        raise NotOpen


def _check_requester(actor: Actor, request: EgressRequest) -> None:
    if not actor.is_requester(request) or not actor.roles_in(request):
        raise Refused("This is the requester's to do.")


def check_can_submit(actor: Actor, tenant: Tenant) -> None:
    """From any collection that they can read: its tenant is theirs, too."""
    if actor.user.service_of_id is not None:
        raise errors.PersonOnly("A request is made by a person, for whom a key of theirs may do it: no service account.")
    if not actor.principal.roles.get(tenant.pk, frozenset()) & {Role.ADMIN, Role.MEMBER}:
        raise Refused("Requests are made by members of the tenant.")


# --- After the release ---


def check_can_revoke(actor: Actor, request: EgressRequest) -> None:
    held = actor.roles_in(request)
    if not actor.principal.is_superuser:
        if not actor.is_person:
            raise errors.PersonOnly
        if Role.ADMIN not in held and not held & set(request.stages):
            raise errors.NotAReviewer
    if request.status != State.RELEASED:
        raise errors.WrongState(request.status)


def check_can_extend(actor: Actor, request: EgressRequest) -> None:
    _check_reviewer(actor, request)
    _check_last_stage(actor, request)
    _check_to_be_had(request)


def check_can_retry(actor: Actor, request: EgressRequest) -> None:
    if not actor.principal.is_superuser:
        raise Refused("This is an operator's to do.")
    if request.status != State.FAILED:
        raise errors.WrongState(request.status)


def check_can_fetch(actor: Actor, request: EgressRequest) -> None:
    """Whether the package is theirs to fetch, however often it was fetched before."""
    named = set(request.policy["downloaders"])
    held = actor.roles_in(request)
    if not held or not ((REQUESTER in named and actor.is_requester(request)) or held & (named - {REQUESTER})):
        raise Refused("The package is for whom the tenant's policy names.")
    _check_to_be_had(request)


def _check_to_be_had(request: EgressRequest) -> None:
    """A package goes at the end of its window, and the tick that says so of the request may come behind that."""
    if request.status != State.RELEASED:
        raise errors.WrongState(request.status)
    if request.available_until is None or request.available_until <= timezone.now():
        raise errors.PackageGone


def check_can_download(actor: Actor, request: EgressRequest) -> None:
    """A further time."""
    check_can_fetch(actor, request)
    if request.downloads_left <= 0:
        raise errors.DownloadsUsed


def check_can_read_items(actor: Actor, request: EgressRequest) -> None:
    """Bytes in staging: while it is in review, and for who has a say in it."""
    held = actor.roles_in(request)
    if not held & set(request.stages):
        raise errors.NotAReviewer
    if actor.is_requester(request):
        raise errors.OwnRequest
    if request.status != State.IN_REVIEW:
        raise errors.WrongState(request.status)


# --- All of it ---


ACTIONS: Final[dict[str, Callable[[Actor, EgressRequest], None]]] = {
    "read_items": check_can_read_items,
    "decide": check_can_decide,
    "return": check_can_send_back,
    "resubmit": check_can_resubmit,
    "withdraw": check_can_withdraw,
    "download": check_can_download,
    "extend": check_can_extend,
    "revoke": check_can_revoke,
    "retry": check_can_retry,
}


def can(check: Callable[[Actor, EgressRequest], None], actor: Actor, request: EgressRequest) -> bool:
    try:
        check(actor, request)
    except APIException:
        return False
    return True


def allowed_actions(actor: Actor, request: EgressRequest) -> list[str]:
    return [action for action, check in ACTIONS.items() if can(check, actor, request)]


# --- Policies ---


def get_policy(user: User, slug: str) -> EgressPolicy:
    """For all who are in the tenant: whoever asks for files should know the rules beforehand. The default one is not stored."""
    return policy_of(people.get_tenant(user, slug))


def policy_of(tenant: Tenant) -> EgressPolicy:
    return EgressPolicy.objects.filter(tenant=tenant).first() or EgressPolicy(tenant=tenant)
