"""Checkpoints of the audit trail: the heads of its chains, signed and stored in the vault.

A person who can change the database cannot change them. A checkpoint is one object, `{"publication": {...}, "signature": ...}`
as canonical JSON (docs/format.md). Each contains the object key and the digest of the previous one. Objects under `.strongroom/`
have no rows: purge and sweep ignore them.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tenants.audit import Damage
from tenants.models import AuditEvent, AuditHead
from vault import crypto, keys, signing
from vault.models import Deployment, Key
from vault.stores import ObjectStore, StoreError, get_store


log = logging.getLogger(__name__)

PREFIX: Final = ".strongroom/audit/"
KIND: Final = "publication"  # the envelope's member
VERSION: Final = 1
CONTEXT: Final = b"strongroom/audit-heads/v1\n"
BATCH: Final = 500  # events that one query looks up


class Head(NamedTuple):
    seq: int
    hash: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose signature is verified."""

    key: str  # of the object
    digest: str  # SHA-256 of the object, hex
    at: datetime
    previous: tuple[str, str] | None  # key and SHA-256 of the object before it
    heads: dict[str, Head]  # by chain


class BadCheckpoint(Exception):
    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"checkpoint {key}: {problem}")
        self.key = key


# --- Publishing ---


def publish(*, now: datetime) -> str | None:
    """Publishes a checkpoint if a head has changed, and returns its object key. Errors are logged; the next tick tries again."""
    try:
        return _publish(get_store("vault"), now)
    except FileExistsError:  # another worker has published in the same ten minutes
        return None
    except (StoreError, FileNotFoundError, crypto.WrongKey) as error:
        log.warning("no audit checkpoint was published", extra={"error": str(error), "kind": type(error).__name__})
        return None


def _publish(store: ObjectStore, now: datetime) -> str | None:
    key = keys.ensure_signing_key(Key.Purpose.AUDIT, now=now)
    signer = signing.signer_for(key)
    previous = _newest(store, key, signer.public_key(), now)
    heads = _current_heads()
    signed = previous.heads if previous else {}
    if previous and not is_loss_accepted(previous):
        for chain, head in _lost_heads(previous, heads):
            # Signing the current head would hide the loss. Sign the old head again until an operator accepts the loss.
            log.error("a signed audit event is missing", extra={"chain": chain, "seq": head.seq})
            heads[chain] = head
    object_key = checkpoint_key(now)
    if previous and (heads == signed or previous.key == object_key):
        return None
    body = {
        "version": VERSION,
        "at": now.astimezone(UTC).isoformat(timespec="microseconds"),
        "key": str(key.id),
        "previous": previous and {"key": previous.key, "sha256": previous.digest},
        "heads": {chain: head._asdict() for chain, head in heads.items()},
    }
    signing.write_document(store, object_key, signing.sign_envelope(KIND, body, context=CONTEXT, signer=signer))
    return object_key


def ensure_signing_key(*, now: datetime) -> Key:
    """Returns the key that signs checkpoints, ledger entries and certificates. Publishes a checkpoint when it creates the key:
    a key without any checkpoint shows that checkpoints were deleted.
    """
    if keys.find_signing_key(Key.Purpose.AUDIT) is None:
        publish(now=now)
    return keys.ensure_signing_key(Key.Purpose.AUDIT, now=now)


def find_lost_events(*, now: datetime) -> Checkpoint | None:
    """Returns the newest checkpoint if it covers events that this database lacks, which means that the database is a backup.
    Returns None if the database has all of them, or if an operator has accepted the loss.

    Raises: StoreUnavailable, StoreRefused, FileNotFoundError, WrongKey.
    """
    key = keys.find_signing_key(Key.Purpose.AUDIT)
    if key is None:
        return None
    newest = _newest(get_store("vault"), key, signing.signer_for(key).public_key(), now)
    if newest is None or is_loss_accepted(newest):
        return None
    return newest if any(_lost_heads(newest, _current_heads())) else None


def is_loss_accepted(checkpoint: Checkpoint) -> bool:
    """Whether an operator has accepted that events up to this checkpoint are lost."""
    return Deployment.objects.filter(lost_until__gte=checkpoint.key).exists()


def checkpoint_key(now: datetime) -> str:
    """Returns the object key for a time. Each ten minutes have one key, which only one worker can write. Keys sort by time."""
    now = now.astimezone(UTC)
    return f"{PREFIX}{now:%Y-%m-%dT%H}{now.minute // 10}0Z.json"


def _current_heads() -> dict[str, Head]:
    return {chain: Head(seq, hash_) for chain, seq, hash_ in AuditHead.objects.values_list("chain", "seq", "hash")}


def _lost_heads(checkpoint: Checkpoint, heads: dict[str, Head]) -> Iterator[tuple[str, Head]]:
    for chain, head in checkpoint.heads.items():
        if heads.get(chain) != head and not AuditEvent.objects.filter(chain=chain, seq=head.seq, hash=head.hash).exists():
            yield chain, head


def _newest(store: ObjectStore, key: Key, public: Ed25519PublicKey, now: datetime) -> Checkpoint | None:
    """Returns the newest valid checkpoint. A year has 50,000, so the search starts with today, then this month, then all."""
    for prefix in (f"{PREFIX}{now.astimezone(UTC):%Y-%m-%d}", f"{PREFIX}{now.astimezone(UTC):%Y-%m}", PREFIX):
        for object_key in sorted((entry.key for entry in store.entries(prefix) if entry.kind == "object"), reverse=True):
            try:
                return _parse(object_key, signing.read_document(store, object_key), key, public)
            except BadCheckpoint as error:
                log.error("an audit checkpoint is damaged", extra={"error": str(error)})
    return None


# --- Verifying ---


@dataclass(frozen=True, slots=True)
class Verification:
    keys: list[str]  # of all checkpoints, the oldest first
    newest: Checkpoint | None  # of the valid ones
    unsigned: int  # number of later events, which no signature covers
    bad: list[BadCheckpoint]
    damages: list[Damage]  # the first difference from the signed heads in each chain


def verify(*, chain: str | None = None, every: bool = False) -> Verification:
    """Compares the audit trail, or one chain of it, with the newest valid checkpoint, or with every checkpoint.

    Raises: StoreUnavailable, StoreRefused, FileNotFoundError, WrongKey.
    """
    store, bad = get_store("vault"), {}
    listed = list(store.entries(PREFIX))
    object_keys = sorted(entry.key for entry in listed if entry.kind == "object")
    for object_key in {entry.key for entry in listed if entry.kind == "marker"}.difference(object_keys):
        bad[object_key] = BadCheckpoint(object_key, "was deleted; the bucket still has a version of it")
    key = keys.find_signing_key(Key.Purpose.AUDIT)
    if key is None:
        bad |= {each: BadCheckpoint(each, "cannot be verified: the database has no signing key") for each in object_keys}
        return Verification(object_keys, None, _count_unsigned({}), list(bad.values()), [])
    if not object_keys:
        bad[""] = BadCheckpoint("(none)", f"all are missing, although their key was created at {key.created_at:%Y-%m-%d %H:%M}")
    public = signing.signer_for(key).public_key()
    newest: Checkpoint | None = None
    digests: dict[str, str] = {}
    links: list[tuple[str, tuple[str, str]]] = []  # a checkpoint, and the key and digest that it states for the previous one
    signed: dict[str, dict[Head, str]] = {}  # chain -> head -> the first checkpoint that has it
    for object_key in object_keys if every else reversed(object_keys):
        content = signing.read_document(store, object_key)
        digests[object_key] = sha256(content).hexdigest()
        try:
            newest = _parse(object_key, content, key, public)
        except BadCheckpoint as error:
            bad[object_key] = error
            continue
        for signed_chain, head in newest.heads.items():
            if chain in {None, signed_chain}:
                signed.setdefault(signed_chain, {}).setdefault(head, object_key)
        if not every:
            break
        if newest.previous:
            links.append((object_key, newest.previous))
    for gap in _gaps(links, digests):
        bad.setdefault(gap.key, gap)
    damages = [damage for name in sorted(signed) if (damage := _first_damage(name, signed[name]))]
    return Verification(object_keys, newest, _count_unsigned(newest.heads if newest else {}), list(bad.values()), damages)


def _count_unsigned(signed: dict[str, Head]) -> int:
    heads = AuditHead.objects.values_list("chain", "seq")
    return sum(max(0, seq - signed[chain].seq) if chain in signed else seq for chain, seq in heads)


def _gaps(links: Iterable[tuple[str, tuple[str, str]]], digests: dict[str, str]) -> Iterator[BadCheckpoint]:
    """Yields checkpoints that a later one names and that are missing or replaced. Two checkpoints name the same one if two
    workers published at the same time."""
    for follower, (object_key, digest) in links:
        if object_key not in digests:
            yield BadCheckpoint(object_key, f"is missing; {follower} follows it")
        elif digests[object_key] != digest:
            yield BadCheckpoint(object_key, f"is not the one that {follower} follows")


def _first_damage(chain: str, signed: dict[Head, str]) -> Damage | None:
    heads = sorted(signed)
    for start in range(0, len(heads), BATCH):
        batch = heads[start : start + BATCH]
        events = AuditEvent.objects.filter(chain=chain, seq__in={head.seq for head in batch}).only("seq", "hash")
        found = {event.seq: event for event in events}
        for head in batch:
            event = found.get(head.seq)
            if event is None:
                return Damage(chain, head.seq, "", f"was signed in {signed[head]}")
            if event.hash != head.hash:
                return Damage(chain, head.seq, str(event.id), f"is not the event that was signed in {signed[head]}")
    return None


def public_key() -> str | None:
    """Returns the key that verifies every checkpoint, as PEM; None before the first checkpoint.

    Raises: WrongKey.
    """
    key = keys.find_signing_key(Key.Purpose.AUDIT)
    return signing.public_pem(key) if key else None


def _parse(object_key: str, content: bytes, key: Key, public: Ed25519PublicKey) -> Checkpoint:
    """Verifies and parses a checkpoint. Its object key must match the signed time: otherwise, an older checkpoint under a newer
    key could hide the end of the trail."""
    try:
        body = signing.verify_envelope(KIND, content, contexts={VERSION: CONTEXT}, public=public)
    except signing.BadEnvelope as error:
        raise BadCheckpoint(object_key, str(error)) from None
    if body["key"] != str(key.id):
        raise BadCheckpoint(object_key, "names another signing key")
    at = datetime.fromisoformat(body["at"])
    if checkpoint_key(at) != object_key:
        raise BadCheckpoint(object_key, "is another checkpoint with this object key")
    previous = body["previous"]
    return Checkpoint(
        key=object_key,
        digest=sha256(content).hexdigest(),
        at=at,
        previous=previous and (previous["key"], previous["sha256"]),
        heads={chain: Head(head["seq"], head["hash"]) for chain, head in body["heads"].items()},
    )
