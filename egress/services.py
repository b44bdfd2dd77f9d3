"""What people do to egress requests. Lock first, then check, write, move, audit: one transaction each."""

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
RESERVED: Final = (manifest.NAME, manifest.SIGNATURE)  # names that the package has for itself


# --- The requester's ---


@retry_on_deadlock
def submit(
    *, collection: Collection, filenames: Sequence[str] | None, justification: str, by: User, now: datetime
) -> EgressRequest:
    """Asks for these files of a collection, or for all that `by` can read. Pins them; the tick copies them to staging."""
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
        transitions.write_step(request, "", by=by, now=now, reason=justification)
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
    """A new round of what was returned: of the same names, as they are now, unless others are given. All is decided anew."""
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
    with transaction.atomic():
        locked = lock_request(request)
        access.check_can_withdraw(actor_of(by), locked)
        move(locked, State.WITHDRAWN, by=by, now=now, reason=reason, action="egress.withdraw")
    return locked


# --- The reviewers' ---


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
    """What `by` says at the stage that it is at. The last approval has its package built, and what failed can be returned.

    Raises StaleDecision if it is in another round, or at another stage (from 1), than the given ones, which `by` has looked at.
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
    """The state and the stage that a decision leads to. An approval leads to the first stage that nobody has approved."""
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
    except IntegrityError:  # the database's own rules, which say the same as `check_can_decide`
        raise errors.AlreadyDecided from None


# --- After the last decision ---


@retry_on_deadlock
def revoke(request: EgressRequest, *, reason: str, by: User, now: datetime) -> EgressRequest:
    """Nobody fetches the package from here on; running downloads end within seconds, and it is destroyed."""
    with transaction.atomic():
        locked = lock_request(request)
        access.check_can_revoke(actor_of(by), locked)
        _check_reason_length("reason", reason, locked.policy["min_reason_length"])
        move(locked, State.REVOKED, by=by, now=now, reason=reason, action="egress.revoke")
    return locked


@retry_on_deadlock
def retry(request: EgressRequest, *, reason: str, by: User, now: datetime) -> EgressRequest:
    """Builds the package of a request that failed once more. What was approved stands, and is checked again."""
    with transaction.atomic():
        locked = lock_request(request)
        access.check_can_retry(actor_of(by), locked)
        move(locked, State.APPROVED, by=by, now=now, reason=reason, action="egress.retry")
    return locked


@retry_on_deadlock
def extend(request: EgressRequest, *, downloads: int, days: int, reason: str, by: User, now: datetime) -> EgressRequest:
    """So many more downloads, and so many more days."""
    with transaction.atomic():
        locked = lock_request(request)
        access.check_can_extend(actor_of(by), locked)
        _check_reason_length("reason", reason, locked.policy["min_reason_length"])
        if locked.package_collection is None or lock_collection(locked.package_collection).status != Collection.Status.OPEN:
            raise errors.PackageGone  # its purge came first
        until = (locked.available_until or now) + timedelta(days=days)
        if until > now + timedelta(days=MAX_DAYS):
            raise Invalid("days", f"A package is to be had for at most {MAX_DAYS} days from now.")
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
    """The whole policy: what is not given has its default. For requests that are submitted from now on.

    Raises PolicyChanged if the one that it replaces has another version than the given one.
    """
    with transaction.atomic():
        locked = Tenant.objects.select_for_update(no_key=True).get(pk=tenant.pk)
        people.check_can_administer(by, locked)
        if fields.get("release_format") == EgressPolicy.Format.PLAIN and Cipher.NONE not in locked.allowed_ciphers:
            raise Invalid("release_format", "The tenant allows no files without encryption.", code="cipher_not_allowed")
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


# --- What is asked for ---


def _collection_of(locked: EgressRequest) -> Collection:
    collection = locked.collection
    if collection is None or collection.status != Collection.Status.OPEN:
        raise NotOpen
    return collection


def _select_files(collection: Collection, filenames: Sequence[str] | None, by: User) -> list[StoredFile]:
    """In the order of their names, with what is wrong said by name."""
    try:
        visible = file_access.get_collection(by, collection.slug)
    except NotFound:
        raise Refused("You cannot read the collection any more.") from None
    readable = file_access.readable_files(by, visible).order_by("name_key")
    if filenames is None:
        files = list(readable[: MAX_FILES + 1])
        if not files:
            raise Invalid("files", "There is no file in it that you can read.", code="empty")
        return files
    keys = {unique_key(name) for name in filenames}
    if not keys:
        raise Invalid("files", "Name at least one file.", code="empty")
    files = list(readable.filter(name_key__in=keys))
    if len(files) != len(keys):
        found = {file.name_key for file in files}
        unknown = [name for name in filenames if unique_key(name) not in found]
        raise Invalid("files", f"You can read no file of this name: {_abbreviate(unknown)}.", code="unknown_file")
    return files


def _check_files(files: list[StoredFile], policy: EgressPolicy) -> None:
    def refuse(wrong: list[str], problem: str, code: str) -> None:
        if wrong:
            raise Invalid("files", f"{problem}: {_abbreviate(wrong)}.", code=code)

    if len(files) > policy.max_files:
        raise Invalid("files", f"A request has at most {policy.max_files} files.", code="too_many_files")
    types = set(policy.file_types)
    if types:
        refuse(
            [file.filename for file in files if access.file_type(file.filename) not in types],
            f"Files of these types may leave: {', '.join(sorted(types))}. Not",
            "file_type_not_allowed",
        )
    if policy.max_file_bytes is not None:
        large = [file.filename for file in files if file.length > policy.max_file_bytes]
        refuse(large, f"A file that leaves has at most {policy.max_file_bytes} bytes. Larger are", "file_too_large")
    if policy.max_total_bytes is not None and sum(file.length for file in files) > policy.max_total_bytes:
        raise Invalid("files", f"A request has at most {policy.max_total_bytes} bytes together.", code="too_large")
    refuse(
        [file.filename for file in files if _name_after_unpacking(file.name_key) in RESERVED],
        "The package has files of these names itself: rename",
        "reserved_name",
    )
    if any(file.status != StoredFile.Status.READY for file in files):
        raise errors.FilesMissing


def _name_after_unpacking(name: str) -> str:
    """As Windows takes it: without what it drops at the end and behind a colon, and without what nobody sees."""
    seen = "".join(character for character in name if category(character) != "Cf")
    return seen.partition(":")[0].rstrip(". ")


def _abbreviate(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


def _content_fields(files: Sequence[StoredFile]) -> dict[str, Any]:
    """What a round is about."""
    return {
        "content_sha256": manifest.digest_of(manifest.listed(files)),
        "file_count": len(files),
        "total_length": sum(file.length for file in files),
    }


def _pin(request: EgressRequest, files: list[StoredFile], *, by: User, now: datetime, round_number: int) -> None:
    """From here on they stay as they are, and each waits for its copy."""
    collection = _collection_of(request)
    Hold.objects.bulk_create(
        Hold(
            collection=collection,
            file=file,
            kind=Hold.Kind.EGRESS,
            ref=str(request.pk),
            reason=f"The egress request {request.pk} of {request.requester_name} is about it.",
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
    # What a service account wrote, somebody wrote with a key of it: whoever made one may have.
    keys = ApiKey.objects.filter(owner__in=writers, owner__service_of__isnull=False, created_by__isnull=False)
    writers |= set(keys.values_list("created_by", flat=True))
    Contributor.objects.bulk_create(Contributor(request=request, round=round_number, user_id=user) for user in sorted(writers))


def _check_reason_length(field: str, text: str, least: int) -> None:
    if len(" ".join(text.split())) < least:
        raise Invalid(field, f"Say why, in at least {least} characters.", code="too_short")
