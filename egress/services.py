"""Operations on egress requests and policies. Each locks, checks, writes, and records in one transaction."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from unicodedata import category
from uuid import uuid4

from django.db import IntegrityError, transaction
from django.forms.models import model_to_dict

from egress import access, errors, transitions
from egress.access import actor_of
from egress.models import MAX_DAYS, MAX_FILES, Contributor, Decision, EgressPolicy, EgressRequest, StagedFile
from egress.package import manifest
from egress.states import OPEN, State
from egress.transitions import lock_request, move
from files import access as file_access
from files.errors import NotOpen
from files.filenames import unique_key
from files.locks import lock_collection
from files.models import Collection, Hold, StoredFile
from tenants import access as people
from tenants import audit
from tenants.errors import Invalid, NotFound, Refused
from tenants.models import ApiKey, Tenant, User
from tenants.work.deadlocks import retry_on_deadlock
from vault import identity
from vault.models import Cipher


STAGING: Final = "staging"
RESERVED_NAMES: Final = (manifest.NAME, manifest.SIGNATURE)  # used by the package itself


# --- By the requester ---


@retry_on_deadlock
def submit(
    *, collection: Collection, filenames: Sequence[str] | None, justification: str, by: User, now: datetime
) -> EgressRequest:
    """Submits a request for the named files, or for all files that `by` can read. Pins them; a tick copies them to staging.

    `collection` comes from `files.access`, which has checked that `by` can see it.

    Raises: DatabaseRestored, FilesMissing, ForeignVault, Invalid, NotFound, NotOpen, PersonOnly, Refused, RequestAlreadyOpen,
    StorageUnavailable.
    """
    identity.check(now=now)
    with transaction.atomic():
        locked = lock_collection(collection)
        access.check_can_submit(actor_of(by), locked.tenant)
        if locked.status != Collection.Status.OPEN:
            raise NotOpen
        policy = access.policy_of(locked.tenant)
        _check_reason_length("justification", justification, policy.min_reason_length)
        open_one = EgressRequest.objects.filter(collection_uuid=locked.uuid, status__in=OPEN)
        if open_one.exists():
            seen = access.visible_requests(by).filter(pk__in=open_one.values("pk")).first()
            raise errors.RequestAlreadyOpen(str(seen.pk) if seen else "")
        files = _select_files(locked, filenames, by)
        _check_files(files, policy)
        request = EgressRequest(
            tenant=locked.tenant,
            collection=locked,
            collection_uuid=locked.uuid,
            collection_slug=locked.slug,
            collection_name=locked.display_name,
            requester=by,
            requester_name=by.username,
            justification=justification,
            policy=_policy_snapshot(policy),
            stages=policy.effective_stages,
            stage_count=len(policy.effective_stages),
            max_downloads=policy.max_downloads,
            created_at=now,
            submitted_at=now,
            changed_at=now,
            expires_at=now + timedelta(days=policy.request_expiry_days),
            **_content_fields(files),
        )
        request.save(force_insert=True)
        _pin(request, files, by=by, now=now, round_number=1)
        request.step = 1
        transitions.write_transition(request, "", by=by, now=now, reason=justification)
        request.save(update_fields=["step"])
        transitions.set_egress_status(request, Collection.EgressStatus.PROCESSING)
        audit.record(
            "egress.submit",
            by=by,
            tenant=locked.tenant,
            target=request,
            now=now,
            collection=str(locked.uuid),
            files=request.file_count,
            length=request.total_length,
            content=request.content_sha256,
            justification=justification,
        )
    return request


@retry_on_deadlock
def resubmit(
    request: EgressRequest, *, filenames: Sequence[str] | None, justification: str | None, by: User, now: datetime
) -> EgressRequest:
    """Starts a new round of a returned request. All stages decide again.

    Without `filenames` the round has the files of the same names, with their current content. Without `justification` the
    previous text remains.

    Raises: DatabaseRestored, FilesMissing, ForeignVault, Invalid, NotFound, NotOpen, PersonOnly, Refused, StorageUnavailable,
    WrongState.
    """
    identity.check(now=now)
    with transaction.atomic():
        locked = lock_request(request)
        access.check_can_resubmit(actor_of(by), locked)
        collection = _collection_of(locked)
        if filenames is None:
            filenames = list(locked.items.filter(round=locked.round).values_list("filename", flat=True))
        policy = EgressPolicy(**locked.policy)
        if justification is not None:
            _check_reason_length("justification", justification, policy.min_reason_length)
        files = _select_files(collection, filenames, by)
        _check_files(files, policy)
        _pin(locked, files, by=by, now=now, round_number=locked.round + 1)
        move(
            locked,
            State.SUBMITTED,
            by=by,
            now=now,
            reason=justification or "",
            action="egress.resubmit",
            round=locked.round + 1,
            stage=0,
            submitted_at=now,
            justification=justification or locked.justification,
            **_content_fields(files),
        )
    return locked


@retry_on_deadlock
def withdraw(request: EgressRequest, *, reason: str, by: User, now: datetime) -> EgressRequest:
    """Ends a request on behalf of its requester. `reason` may be empty.

    Raises: NotFound, Refused, WrongState.
    """
    with transaction.atomic():
        locked = lock_request(request)
        access.check_can_withdraw(actor_of(by), locked)
        move(locked, State.WITHDRAWN, by=by, now=now, reason=reason, action="egress.withdraw")
    return locked


# --- By reviewers ---


@retry_on_deadlock
def decide(
    request: EgressRequest,
    *,
    verdict: str,
    reason: str,
    by: User,
    now: datetime,
    round_number: int | None = None,
    stage_number: int | None = None,
) -> EgressRequest:
    """Records the decision of `by` at the current stage. After the last approval a tick builds the package.

    A failed request can only be returned. `round_number` and `stage_number` (both from 1) are those that `by` has read; the
    decision is refused if the request has moved since.

    Raises: AlreadyDecided, Invalid, NotAReviewer, NotFound, NotYourStage, OwnContribution, OwnRequest, PersonOnly, Refused,
    StaleDecision, WrongState.
    """
    with transaction.atomic():
        locked = lock_request(request)
        if locked.status == State.FAILED and verdict == Decision.Verdict.RETURN:
            access.check_can_return_failed(actor_of(by), locked)
        else:
            access.check_can_decide(actor_of(by), locked)
        if round_number not in {None, locked.round} or stage_number not in {None, locked.stage + 1}:
            raise errors.StaleDecision(locked.round, locked.stage + 1)
        _check_reason_length("reason", reason, locked.policy["min_reason_length"])
        to, stage, facts = State.RETURNED, locked.stage, {}
        if locked.status == State.IN_REVIEW:
            facts = {"role": locked.awaited_role, "content": locked.content_sha256}
            _write_decision(locked, verdict, reason, by, now)
            to, stage = _next_state(locked, verdict)
        move(locked, to, by=by, now=now, reason=reason, action=f"egress.{verdict}", facts=facts, stage=stage)
    return locked


def _next_state(locked: EgressRequest, verdict: str) -> tuple[State, int]:
    """The status and stage after this decision. An approval leads to the first stage without a valid approval."""
    if verdict == Decision.Verdict.REJECT:
        return State.REJECTED, locked.stage
    if verdict == Decision.Verdict.RETURN:
        return State.RETURNED, locked.stage
    approved = locked.decisions.filter(round=locked.round, voided_at=None, verdict=Decision.Verdict.APPROVE)
    missing = set(range(locked.stage_count)) - set(approved.values_list("stage", flat=True))
    return (State.IN_REVIEW, min(missing)) if missing else (State.APPROVED, locked.stage)


def _write_decision(locked: EgressRequest, verdict: str, reason: str, by: User, now: datetime) -> None:
    try:
        with transaction.atomic():
            Decision.objects.create(
                request=locked,
                round=locked.round,
                stage=locked.stage,
                role=locked.awaited_role,
                verdict=verdict,
                reason=reason,
                content_sha256=locked.content_sha256,
                by=by,
                by_name=by.username,
                by_email=by.email,
                at=now,
            )
    except IntegrityError:  # A constraint or trigger of the database, which enforces the same rules as `check_can_decide`.
        raise errors.AlreadyDecided from None


# --- After the last approval ---


@retry_on_deadlock
def revoke(request: EgressRequest, *, reason: str, by: User, now: datetime) -> EgressRequest:
    """Ends a release. New downloads are refused, running downloads stop within seconds, and a tick destroys the package.

    Raises: Invalid, NotAReviewer, NotFound, PersonOnly, WrongState.
    """
    with transaction.atomic():
        locked = lock_request(request)
        access.check_can_revoke(actor_of(by), locked)
        _check_reason_length("reason", reason, locked.policy["min_reason_length"])
        move(locked, State.REVOKED, by=by, now=now, reason=reason, action="egress.revoke")
    return locked


@retry_on_deadlock
def retry(request: EgressRequest, *, reason: str, by: User, now: datetime) -> EgressRequest:
    """Builds the package of a failed request again. The approvals remain valid and are checked again.

    Raises: NotFound, Refused, WrongState.
    """
    with transaction.atomic():
        locked = lock_request(request)
        access.check_can_retry(actor_of(by), locked)
        move(locked, State.APPROVED, by=by, now=now, reason=reason, action="egress.retry")
    return locked


@retry_on_deadlock
def extend(request: EgressRequest, *, downloads: int, days: int, reason: str, by: User, now: datetime) -> EgressRequest:
    """Adds downloads and days to a release. `days` are added to the end of the download window.

    Raises: Invalid, NotAReviewer, NotFound, OwnContribution, OwnRequest, PackageGone, PersonOnly, Refused, WrongState.
    """
    with transaction.atomic():
        locked = lock_request(request)
        access.check_can_extend(actor_of(by), locked)
        _check_reason_length("reason", reason, locked.policy["min_reason_length"])
        if locked.package_collection is None or lock_collection(locked.package_collection).status != Collection.Status.OPEN:
            raise errors.PackageGone  # It was purged first.
        until = (locked.available_until or now) + timedelta(days=days)
        if until > now + timedelta(days=MAX_DAYS):
            raise Invalid("days", f"The package can be available for at most {MAX_DAYS} days from now. Add fewer days.")
        Collection.objects.filter(package_of=locked).update(purge_at=until)
        move(
            locked,
            State.RELEASED,
            by=by,
            now=now,
            reason=reason,
            action="egress.extend",
            facts={"downloads": downloads, "days": days, "available_until": until.isoformat()},
            max_downloads=locked.max_downloads + downloads,
            available_until=until,
        )
    return locked


# --- Policies ---


@retry_on_deadlock
def set_policy(tenant: Tenant, *, by: User, now: datetime, version: int | None = None, **fields: Any) -> EgressPolicy:
    """Replaces the policy for requests that are submitted from now on. A missing field gets its default value.

    The change is refused if `version` is given and is not the current version.

    Raises: Invalid, NotFound, PolicyChanged, Refused.
    """
    with transaction.atomic():
        locked = Tenant.objects.select_for_update(no_key=True).get(pk=tenant.pk)
        people.check_can_administer(by, locked)
        if fields.get("release_format") == EgressPolicy.Format.PLAIN and Cipher.NONE not in locked.allowed_ciphers:
            raise Invalid(
                "release_format",
                "The tenant does not allow unencrypted files. Choose `sealed`.",
                code="cipher_not_allowed",
            )
        before = access.policy_of(locked)
        if version not in {None, before.version}:
            raise errors.PolicyChanged(before.version)
        policy = EgressPolicy(pk=before.pk, tenant=locked, version=before.version + 1, **fields)
        policy.save()
        after, old = _policy_snapshot(policy), _policy_snapshot(before)
        changes = {name: str(value) for name, value in after.items() if value != old[name]}
        audit.record("egress.policy", by=by, tenant=locked, target=policy, now=now, **changes)
    return policy


def _policy_snapshot(policy: EgressPolicy) -> dict[str, Any]:
    return model_to_dict(policy, exclude=["id", "tenant"]) | {"version": policy.version}


# --- Files of a request ---


def _collection_of(locked: EgressRequest) -> Collection:
    collection = locked.collection
    if collection is None or collection.status != Collection.Status.OPEN:
        raise NotOpen
    return collection


def _select_files(collection: Collection, filenames: Sequence[str] | None, by: User) -> list[StoredFile]:
    """The requested files, ordered by name. Raises an error that names the files that `by` cannot read."""
    try:
        visible = file_access.get_collection(by, collection.slug)
    except NotFound:
        raise Refused("You can no longer read the collection.") from None
    readable = file_access.readable_files(by, visible).order_by("name_key")
    if filenames is None:
        files = list(readable[: MAX_FILES + 1])
        if not files:
            raise Invalid("files", "The collection has no file that you can read.", code="empty")
        return files
    keys = {unique_key(name) for name in filenames}
    if not keys:
        raise Invalid("files", "Name at least one file.", code="empty")
    files = list(readable.filter(name_key__in=keys))
    if len(files) != len(keys):
        found = {file.name_key for file in files}
        unknown = [name for name in filenames if unique_key(name) not in found]
        raise Invalid("files", f"You cannot read files of these names: {_abbreviate(unknown)}.", code="unknown_file")
    return files


def _check_files(files: list[StoredFile], policy: EgressPolicy) -> None:
    def refuse(wrong: list[str], problem: str, code: str) -> None:
        if wrong:
            raise Invalid("files", f"{problem}: {_abbreviate(wrong)}.", code=code)

    if len(files) > policy.max_files:
        raise Invalid("files", f"A request can have at most {policy.max_files} files. Name fewer files.", code="too_many_files")
    types = set(policy.file_types)
    if types:
        refuse(
            [file.filename for file in files if access.file_type(file.filename) not in types],
            f"The policy allows only these file types: {', '.join(sorted(types))}. Remove",
            "file_type_not_allowed",
        )
    if policy.max_file_bytes is not None:
        large = [file.filename for file in files if file.length > policy.max_file_bytes]
        refuse(large, f"A file can have at most {policy.max_file_bytes} bytes. Remove", "file_too_large")
    if policy.max_total_bytes is not None and sum(file.length for file in files) > policy.max_total_bytes:
        raise Invalid(
            "files",
            f"The files can have at most {policy.max_total_bytes} bytes in total.",
            code="too_large",
        )
    refuse(
        [file.filename for file in files if _name_after_unpacking(file.name_key) in RESERVED_NAMES],
        "These names are reserved for files of the package. Rename",
        "reserved_name",
    )
    if any(file.status != StoredFile.Status.READY for file in files):
        raise errors.FilesMissing


def _name_after_unpacking(name: str) -> str:
    """The name of the unpacked file on Windows: no trailing dots or spaces, no part after a colon, no invisible characters."""
    seen = "".join(character for character in name if category(character) != "Cf")
    return seen.partition(":")[0].rstrip(". ")


def _abbreviate(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


def _content_fields(files: Sequence[StoredFile]) -> dict[str, Any]:
    """The fields of a request that describe the files of the round."""
    return {
        "content_sha256": manifest.digest_of(manifest.entries(files)),
        "file_count": len(files),
        "total_length": sum(file.length for file in files),
    }


def _pin(request: EgressRequest, files: list[StoredFile], *, by: User, now: datetime, round_number: int) -> None:
    """Places a hold on each file, queues its copy, and records its contributors."""
    collection = _collection_of(request)
    Hold.objects.bulk_create(
        Hold(
            collection=collection,
            file=file,
            kind=Hold.Kind.EGRESS,
            ref=str(request.pk),
            reason=f"It is part of the egress request {request.pk} of {request.requester_name}.",
            placed_at=now,
            placed_by=by,
        )
        for file in files
    )
    StagedFile.objects.bulk_create(
        StagedFile(
            request=request,
            round=round_number,
            number=number,
            file=file,
            file_uuid=file.uuid,
            filename=file.filename,
            content_type=file.content_type,
            length=file.length,
            sha256=file.sha256,
            object_id=file.object_id,
            store=STAGING,
            object_key=collection.object_key(uuid4()),
        )
        for number, file in enumerate(files, start=1)
    )
    writers = {user for file in files for user in (file.created_by_id, file.updated_by_id) if user is not None}
    # A service account writes with an API key. Every person who created one of its keys counts as a contributor.
    keys = ApiKey.objects.filter(owner__in=writers, owner__service_of__isnull=False, created_by__isnull=False)
    writers |= set(keys.values_list("created_by", flat=True))
    Contributor.objects.bulk_create(Contributor(request=request, round=round_number, user_id=user) for user in sorted(writers))


def _check_reason_length(field: str, text: str, minimum: int) -> None:
    if len(" ".join(text.split())) < minimum:
        raise Invalid(field, f"Give a reason of at least {minimum} characters.", code="too_short")
