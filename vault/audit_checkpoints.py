"""The heads of the audit chains, signed and kept in the vault: what whoever rewrites the database cannot rewrite with it.

A publication is one object, `{"publication": {...}, "signature": ...}` as canonical JSON (docs/format.md). Each names the one
before it and its digest. Everything under `.strongroom/` has no row: purge and sweep leave it alone.
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
CONTEXT: Final = b"strongroom/audit-heads/v1\n"


class Head(NamedTuple):
    seq: int
    hash: str


@dataclass(frozen=True, slots=True)
class Publication:
    """One that was signed here."""

    key: str
    digest: str  # SHA-256 of the object, hex
    at: datetime
    previous: tuple[str, str] | None  # key and SHA-256 of the object before it
    heads: dict[str, Head]  # by chain


class BadPublication(Exception):
    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"publication {key}: {problem}")
        self.key = key


# --- Publishing ---


def publish(*, now: datetime) -> str | None:
    """Signs the heads if any moved; the key of the new object. Whatever is in the way is logged and tried again next time."""
    try:
        return _publish(get_store("vault"), now)
    except FileExistsError:  # another worker's, of the same ten minutes
        return None
    except (StoreError, FileNotFoundError, crypto.WrongKey) as error:
        log.warning("the audit trail's heads were not published", extra={"error": str(error), "kind": type(error).__name__})
        return None


def _publish(store: ObjectStore, now: datetime) -> str | None:
    key = keys.ensure_signing_key(Key.Purpose.AUDIT, now=now)
    signer = signing.signer_of(key)
    previous = _newest(store, key, signer.public_key(), now)
    heads = {chain: Head(seq, hash_) for chain, seq, hash_ in AuditHead.objects.values_list("chain", "seq", "hash")}
    signed = previous.heads if previous else {}
    if previous and not is_known_to_be_lost(previous):
        for chain, head in _lost(previous, heads):
            # Signing what is there now would bury what was there. The old head stays until an operator has looked.
            log.error("an event that was signed is gone", extra={"chain": chain, "seq": head.seq})
            heads[chain] = head
    name = name_of(now)
    if previous and (heads == signed or previous.key == name):
        return None
    publication = {
        "version": 1,
        "at": now.astimezone(UTC).isoformat(timespec="microseconds"),
        "key": str(key.id),
        "previous": previous and {"key": previous.key, "sha256": previous.digest},
        "heads": {chain: head._asdict() for chain, head in heads.items()},
    }
    signing.put(store, name, signing.sealed("publication", publication, context=CONTEXT, signer=signer))
    return name


def ensure_signing_key(*, now: datetime) -> Key:
    """The key for what else it signs. The heads are published first: a key without a publication is a trail that was cut."""
    if keys.find_signing_key(Key.Purpose.AUDIT) is None:
        publish(now=now)
    return keys.ensure_signing_key(Key.Purpose.AUDIT, now=now)


def lost(*, now: datetime) -> Publication | None:
    """The newest publication if it has events that this database lacks, as a backup does. None if all are there, or an operator
    knows of it. Raises StoreError, and WrongKey if the keyring does not open the key."""
    key = keys.find_signing_key(Key.Purpose.AUDIT)
    if key is None:
        return None
    newest = _newest(get_store("vault"), key, signing.signer_of(key).public_key(), now)
    if newest is None or is_known_to_be_lost(newest):
        return None
    heads = {chain: Head(seq, hash_) for chain, seq, hash_ in AuditHead.objects.values_list("chain", "seq", "hash")}
    return newest if any(_lost(newest, heads)) else None


def is_known_to_be_lost(publication: Publication) -> bool:
    return Deployment.objects.filter(lost_until__gte=publication.key).exists()


def _lost(publication: Publication, heads: dict[str, Head]) -> Iterator[tuple[str, Head]]:
    for chain, head in publication.heads.items():
        if heads.get(chain) != head and not AuditEvent.objects.filter(chain=chain, seq=head.seq, hash=head.hash).exists():
            yield chain, head


def name_of(now: datetime) -> str:
    """One for each ten minutes, so that of two workers at once one finds it taken. Later ones sort behind it."""
    now = now.astimezone(UTC)
    return f"{PREFIX}{now:%Y-%m-%dT%H}{now.minute // 10}0Z.json"


def _newest(store: ObjectStore, key: Key, public: Ed25519PublicKey, now: datetime) -> Publication | None:
    """The newest that is sound. A year has 50,000: today's are looked at first, then the month's, then all."""
    for prefix in (f"{PREFIX}{now.astimezone(UTC):%Y-%m-%d}", f"{PREFIX}{now.astimezone(UTC):%Y-%m}", PREFIX):
        for name in sorted((entry.key for entry in store.entries(prefix) if entry.kind == "object"), reverse=True):
            try:
                return _parse(name, signing.fetch(store, name), key, public)
            except BadPublication as error:
                log.error("a publication is damaged", extra={"error": str(error)})
    return None


# --- Verifying ---


@dataclass(frozen=True, slots=True)
class Verdict:
    published: list[str]  # the keys of all publications, the oldest first
    newest: Publication | None  # of those that are sound
    unsigned: int  # events since then: nothing but the database vouches for them
    bad: list[BadPublication]
    damages: list[Damage]  # the first of each chain that is not as it was signed


def verify(*, chain: str | None = None, every: bool = False) -> Verdict:
    """The trail against the newest publication that is sound, or against every one. Raises StoreError, and WrongKey if the
    keyring does not open the key that signed."""
    store, bad = get_store("vault"), {}
    listed = list(store.entries(PREFIX))
    names = sorted(entry.key for entry in listed if entry.kind == "object")
    for name in {entry.key for entry in listed if entry.kind == "marker"}.difference(names):
        bad[name] = BadPublication(name, "was deleted; the bucket still has a version of it")
    key = keys.find_signing_key(Key.Purpose.AUDIT)
    if key is None:
        bad |= {name: BadPublication(name, "there is no key that could have signed it") for name in names}
        return Verdict(names, None, _unsigned({}), list(bad.values()), [])
    if not names:
        bad[""] = BadPublication(
            "(none)", f"none is left, though the key that signs them was made at {key.created_at:%Y-%m-%d %H:%M}"
        )
    public = signing.signer_of(key).public_key()
    newest: Publication | None = None
    digests: dict[str, str] = {}
    followed: list[tuple[str, tuple[str, str]]] = []
    signed: dict[str, dict[Head, str]] = {}  # chain -> head -> the first publication that has it
    for name in names if every else reversed(names):
        content = signing.fetch(store, name)
        digests[name] = sha256(content).hexdigest()
        try:
            newest = _parse(name, content, key, public)
        except BadPublication as error:
            bad[name] = error
            continue
        for signed_chain, head in newest.heads.items():
            if chain in {None, signed_chain}:
                signed.setdefault(signed_chain, {}).setdefault(head, name)
        if not every:
            break
        if newest.previous:
            followed.append((name, newest.previous))
    for gap in _gaps(followed, digests):
        bad.setdefault(gap.key, gap)
    damages = [damage for name in sorted(signed) if (damage := _first_damage(name, signed[name]))]
    return Verdict(names, newest, _unsigned(newest.heads if newest else {}), list(bad.values()), damages)


def _unsigned(signed: dict[str, Head]) -> int:
    heads = AuditHead.objects.values_list("chain", "seq")
    return sum(max(0, seq - signed[chain].seq) if chain in signed else seq for chain, seq in heads)


def _gaps(followed: Iterable[tuple[str, tuple[str, str]]], digests: dict[str, str]) -> Iterator[BadPublication]:
    """Each names one that has to be there as it was. Two may name the same one, when two workers met at the turn of a period."""
    for follower, (name, digest) in followed:
        if name not in digests:
            yield BadPublication(name, f"is gone; {follower} follows it")
        elif digests[name] != digest:
            yield BadPublication(name, f"is not the one that {follower} follows")


def _first_damage(chain: str, signed: dict[Head, str]) -> Damage | None:
    heads = sorted(signed)
    for start in range(0, len(heads), 500):
        batch = heads[start : start + 500]
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
    """PEM of the key that verifies every publication; None before the first."""
    key = keys.find_signing_key(Key.Purpose.AUDIT)
    return signing.public_pem(key) if key else None


def _parse(name: str, content: bytes, key: Key, public: Ed25519PublicKey) -> Publication:
    """Nothing of it is believed before the signature fits, and the name belongs to what is signed: an older publication under
    a newer name would make the trail look shorter."""
    try:
        publication = signing.opened("publication", content, context=CONTEXT, public=public)
    except signing.BadDocument as error:
        raise BadPublication(name, str(error)) from None
    if publication["version"] != 1 or publication["key"] != str(key.id):
        raise BadPublication(name, "is of another version or key")
    at = datetime.fromisoformat(publication["at"])
    if name_of(at) != name:
        raise BadPublication(name, "is another publication under this name")
    previous = publication["previous"]
    return Publication(
        key=name,
        digest=sha256(content).hexdigest(),
        at=at,
        previous=previous and (previous["key"], previous["sha256"]),
        heads={chain: Head(head["seq"], head["hash"]) for chain, head in publication["heads"].items()},
    )
