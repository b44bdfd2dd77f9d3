"""Access rules of egress requests. Each `check_can_x` raises an error; `allowed_actions` is derived from the same checks.

A request is visible to its requester, to users with a role of one of its stages, to admins and auditors of its tenant, and to
superusers, who decide nothing. After the release it is also visible to users who may download the package. Reviewers may read
the staged files. The users that the policy names as downloaders may download the package.
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


ITEM_FIELDS: Final = ("number", "filename", "content_type", "length", "sha256", "status", "wiped_at")
REQUESTER: Final = "requester"  # a value of the policy's `downloaders`


@dataclass(frozen=True)
class Actor:
    """A user with their current roles."""

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


# --- Visibility ---


def visible_requests(user: User) -> QuerySet[EgressRequest]:
    """The requests that the user can see, with tenant, decisions and contributors loaded, and without the manifest."""
    principal = people.principal_of(user)
    current = [
        Prefetch("decisions", Decision.objects.order_by("at", "pk")),
        Prefetch("contributors", Contributor.objects.all()),
    ]
    requests = EgressRequest.objects.select_related("tenant").prefetch_related(*current).defer("manifest")
    if principal.is_superuser:
        return requests
    conditions = Q(tenant__in=principal.tenants_with_role(Role.ADMIN, Role.AUDITOR))
    conditions |= Q(tenant__in=list(principal.roles), requester=user.pk)
    for tenant, held in principal.roles.items():
        for role in held.difference(SERVICE_ROLES):
            conditions |= Q(tenant=tenant, roles__contains=f'"{role}"')
        for role in held - {REQUESTER}:
            conditions |= Q(tenant=tenant, who__contains=f'"{role}"', released_at__isnull=False)
    policy = {name: Cast(KeyTransform(key, "policy"), TextField()) for name, key in (("roles", "stages"), ("who", "downloaders"))}
    return requests.alias(**policy).filter(conditions)


def get_request(user: User, request_id: str) -> EgressRequest:
    """One visible request. Also sets the tenant of the current HTTP request, for the log.

    Raises: NotFound.
    """
    request = visible_requests(user).filter(pk=people.parse_uuid(request_id)).first()
    if request is None:
        raise NotFound
    tenant_id.set(str(request.tenant_id))
    return request


def get_released(user: User, request_id: str) -> EgressRequest:
    """A visible request that was released. Its package may have been deleted since.

    Raises: NotFound.
    """
    request = get_request(user, request_id)
    if not request.manifest:
        raise NotFound
    return request


def get_detail(user: User, request_id: str, *, round_number: int | None = None) -> EgressRequest:
    """A visible request with extra attributes for `RequestDetail`. Its files are those of `round_number`; default: current round.

    Raises: Invalid, NotFound.
    """
    request: Any = get_request(user, request_id)
    if round_number is not None and round_number > request.round:
        raise Invalid("round", f"The request is in round {request.round}.", code="no_such_round")
    request.shown_round = round_number or request.round
    request.shown_items = request.items.filter(round=request.shown_round).order_by("number").values(*ITEM_FIELDS)
    opened = ReadReceipt.objects.filter(item__request=request, item__round=request.shown_round).order_by("first_at")
    request.opened = opened.values_list("item__number", "by_name", "first_at")
    request.progress_made = _progress(request)
    request.timeline = request.steps.order_by("number")
    request.downloads_made = request.downloads.order_by("granted_at")
    request.notifications = _notifications(user, request)
    found: EgressRequest = request
    return found


def _notifications(user: User, request: EgressRequest) -> QuerySet[Mail]:
    """The mails about the request. Members of the tenant do not see which operators received one."""
    mails = outbox.mails_about(str(request.pk))
    if people.principal_of(user).is_superuser:
        return mails
    operators = User.objects.filter(is_superuser=True).exclude(memberships__tenant=request.tenant_id)
    return mails.exclude(recipient__in=operators.values("email"))


def _progress(request: EgressRequest) -> dict[str, int] | None:
    """Bytes that the worker has copied or packed so far, and their total. None if no worker is due."""
    if request.status == State.SUBMITTED:
        staged = request.items.filter(round=request.round, status=StagedFile.Status.STAGED)
        return {"done": staged.aggregate(sum=Sum("length", default=0))["sum"], "of": request.total_length}
    if request.status == State.APPROVED:
        return {"done": min(request.packed, request.total_length), "of": request.total_length}
    return None


def file_types(request: EgressRequest) -> list[str]:
    """The distinct extensions of the files in the current round, sorted."""
    names = request.items.filter(round=request.round).values_list("filename", flat=True)
    return sorted({file_type(name) for name in names} - {""})


def file_type(filename: str) -> str:
    """The last extension in lower case, without its dot. Empty if the name has none."""
    stem, dot, extension = filename.rpartition(".")
    return extension.lower() if dot and stem else ""


def get_staged_file(user: User, request_id: str, number: int) -> StagedFile:
    """One staged file of the current round of a visible request. `number` counts from 1.

    Raises: NotFound.
    """
    request = get_request(user, request_id)
    item = request.items.select_related("file__collection__key").filter(round=request.round, number=number).first()
    if item is None:
        raise NotFound
    item.request = request
    return item


def awaiting_decision_by(requests: QuerySet[EgressRequest], user: User) -> QuerySet[EgressRequest]:
    """Those of `requests` that the user can decide on now."""
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


def can_see_collection(actor: Actor, request: EgressRequest) -> bool:
    """Whether to link to the collection. A stage role alone gives no access to it. The link may still lead to a 404."""
    if request.collection_id is None:
        return False
    return actor.is_requester(request) or bool(actor.roles_in(request) & {Role.ADMIN, Role.AUDITOR})


# --- Decisions ---


def check_can_decide(actor: Actor, request: EgressRequest) -> None:
    """Checks that the actor may decide at the current stage.

    Raises: AlreadyDecided, NotAReviewer, NotYourStage, OwnContribution, OwnRequest, PersonOnly, WrongState.
    """
    _check_reviewer(actor, request)
    if request.status != State.IN_REVIEW:
        raise errors.WrongState(request.status)
    if request.awaited_role not in actor.roles_in(request):
        raise errors.NotYourStage(request.awaited_role)
    if any(decision.by_id == actor.user.pk for decision in valid_decisions(request)):
        raise errors.AlreadyDecided


def check_can_return_failed(actor: Actor, request: EgressRequest) -> None:
    """Checks that the actor may return a failed request to its requester: a reviewer of the last stage may.

    Raises: NotAReviewer, OwnContribution, OwnRequest, PersonOnly, Refused, WrongState.
    """
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
        raise Refused(f"Only a reviewer with the role {request.stages[-1]} can do this.")


def valid_decisions(request: EgressRequest) -> list[Decision]:
    """The decisions of the current round that are not void."""
    return [each for each in request.decisions.all() if each.round == request.round and each.voided_at is None]


def is_contributor(user_id: int, request: EgressRequest) -> bool:
    """Whether the user wrote one of the files in the current round."""
    return any(each.round == request.round and each.user_id == user_id for each in request.contributors.all())


def is_still_authorized(decision: Decision, request: EgressRequest) -> bool:
    """Whether the user who made this decision may still decide at its stage."""
    user = User.objects.filter(pk=decision.by_id, service_of=None).first()
    if user is None or user.pk == request.requester_id or is_contributor(user.pk, request):
        return False
    return decision.role in people.principal_of(user).roles.get(request.tenant_id, ())


def reviewers(request: EgressRequest) -> QuerySet[User]:
    """The users who may decide at the current stage."""
    in_round = {"request": request, "round": request.round}
    return (
        User.objects.filter(memberships__in=_holders(request.tenant, request.awaited_role))
        .exclude(pk=request.requester_id)
        .exclude(pk__in=Contributor.objects.filter(**in_round).values("user"))
        .exclude(pk__in=Decision.objects.filter(**in_round, voided_at=None).values("by"))
    )


def _holders(tenant: Tenant, role: str) -> QuerySet[Membership]:
    return tenant.memberships.all().of_active_people().with_role(role)


# --- The requester ---


def check_can_withdraw(actor: Actor, request: EgressRequest) -> None:
    """Checks that the actor is the requester and that the request can be withdrawn.

    Raises: Refused, WrongState.
    """
    _check_requester(actor, request)
    if State.WITHDRAWN not in TRANSITIONS[State(request.status)]:
        raise errors.WrongState(request.status)


def check_can_resubmit(actor: Actor, request: EgressRequest) -> None:
    """Checks that the actor is the requester, that the request was returned, and that its collection still exists.

    Raises: NotOpen, PersonOnly, Refused, WrongState.
    """
    _check_requester(actor, request)
    if request.status != State.RETURNED:
        raise errors.WrongState(request.status)
    check_can_submit(actor, request.tenant)
    if request.collection_id is None:
        raise NotOpen


def _check_requester(actor: Actor, request: EgressRequest) -> None:
    if not actor.is_requester(request) or not actor.roles_in(request):
        raise Refused("Only the requester can do this.")


def check_can_submit(actor: Actor, tenant: Tenant) -> None:
    """Checks that the actor may submit requests in this tenant. The caller has checked access to the collection.

    Raises: PersonOnly, Refused.
    """
    if actor.user.service_of_id is not None:
        raise errors.PersonOnly("A service account cannot submit a request. Use the account or the API key of a person.")
    if not actor.principal.roles.get(tenant.pk, frozenset()) & {Role.ADMIN, Role.MEMBER}:
        raise Refused("Only members and admins of the tenant can submit a request.")


# --- After the release ---


def check_can_revoke(actor: Actor, request: EgressRequest) -> None:
    """Checks that the actor is a reviewer, an admin or a superuser, and that the request is released.

    Raises: NotAReviewer, PersonOnly, WrongState.
    """
    held = actor.roles_in(request)
    if not actor.principal.is_superuser:
        if not actor.is_person:
            raise errors.PersonOnly
        if Role.ADMIN not in held and not held & set(request.stages):
            raise errors.NotAReviewer
    if request.status != State.RELEASED:
        raise errors.WrongState(request.status)


def check_can_extend(actor: Actor, request: EgressRequest) -> None:
    """Checks that the actor is a reviewer of the last stage and that the package is available.

    Raises: NotAReviewer, OwnContribution, OwnRequest, PackageGone, PersonOnly, Refused, WrongState.
    """
    _check_reviewer(actor, request)
    _check_last_stage(actor, request)
    _check_available(request)


def check_can_retry(actor: Actor, request: EgressRequest) -> None:
    """Checks that the actor is a superuser and that the request has failed.

    Raises: Refused, WrongState.
    """
    if not actor.principal.is_superuser:
        raise Refused("Only an operator can do this.")
    if request.status != State.FAILED:
        raise errors.WrongState(request.status)


def check_can_fetch(actor: Actor, request: EgressRequest) -> None:
    """Checks that the policy lets the actor have the package and that it is available. Ignores the number of downloads.

    Raises: PackageGone, Refused, WrongState.
    """
    named = set(request.policy["downloaders"])
    held = actor.roles_in(request)
    if not held or not ((REQUESTER in named and actor.is_requester(request)) or held & (named - {REQUESTER})):
        raise Refused("The tenant's egress policy does not allow you to download this package.")
    _check_available(request)


def _check_available(request: EgressRequest) -> None:
    """The package expires at the end of its window. The tick that closes the request may run later."""
    if request.status != State.RELEASED:
        raise errors.WrongState(request.status)
    if request.available_until is None or request.available_until <= timezone.now():
        raise errors.PackageGone


def check_can_download(actor: Actor, request: EgressRequest) -> None:
    """Checks that the actor may start a new download.

    Raises: DownloadsUsed, PackageGone, Refused, WrongState.
    """
    check_can_fetch(actor, request)
    if request.downloads_left <= 0:
        raise errors.DownloadsUsed


def check_can_read_items(actor: Actor, request: EgressRequest) -> None:
    """Checks that the actor is a reviewer, not the requester, and that the request is in review.

    Raises: NotAReviewer, OwnRequest, WrongState.
    """
    held = actor.roles_in(request)
    if not held & set(request.stages):
        raise errors.NotAReviewer
    if actor.is_requester(request):
        raise errors.OwnRequest
    if request.status != State.IN_REVIEW:
        raise errors.WrongState(request.status)


# --- All actions ---


ACTIONS: Final[dict[str, Callable[[Actor, EgressRequest], None]]] = {
    "read_items": check_can_read_items,
    "decide": check_can_decide,
    "return": check_can_return_failed,
    "resubmit": check_can_resubmit,
    "withdraw": check_can_withdraw,
    "download": check_can_download,
    "extend": check_can_extend,
    "revoke": check_can_revoke,
    "retry": check_can_retry,
}


def can(check: Callable[[Actor, EgressRequest], None], actor: Actor, request: EgressRequest) -> bool:
    """Whether `check` passes without an error."""
    try:
        check(actor, request)
    except APIException:
        return False
    return True


def allowed_actions(actor: Actor, request: EgressRequest) -> list[str]:
    """The names of the actions that the actor can perform now."""
    return [action for action, check in ACTIONS.items() if can(check, actor, request)]


# --- Policies ---


def get_policy(user: User, slug: str) -> EgressPolicy:
    """The policy of a tenant, which all its members may read: a requester must know the rules in advance.

    Raises: NotFound.
    """
    return policy_of(people.get_tenant(user, slug))


def policy_of(tenant: Tenant) -> EgressPolicy:
    """The tenant's policy, or an unsaved policy with the default values."""
    return EgressPolicy.objects.filter(tenant=tenant).first() or EgressPolicy(tenant=tenant)
