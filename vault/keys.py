"""Creates, unwraps, rewraps and destroys data keys. The keyring wraps them, and the table `Key` stores them wrapped."""

from collections.abc import Iterator
from datetime import datetime
from typing import Final, Protocol
from uuid import UUID

from django.db import IntegrityError, connection, transaction

from tenants import audit
from tenants.work.deadlocks import retry_on_deadlock
from vault import crypto
from vault.keyring import keyring
from vault.models import Key


DEPLOYMENT: Final = "deployment"  # the owner of keys that belong to no tenant


class KeyOwner(Protocol):
    """An object that has its own data key."""

    @property
    def key_owner(self) -> str:
        """A unique name that is never reused. The wrapping of the key is bound to it."""


def wrapping_context(key: Key, *, kek_id: str) -> bytes:
    """Returns the associated data of a wrapping, which binds it to its row, owner and purpose (INV-05)."""
    return crypto.encode("strongroom/key", str(key.id), key.purpose, key.owner, kek_id)


def create_data_key(owner: KeyOwner, *, now: datetime) -> Key:
    """Creates a random data key. Call it in the transaction that saves the owner. IntegrityError: the owner already has a key."""
    return _create_key(Key.Purpose.COLLECTION, owner.key_owner, now)


def find_signing_key(purpose: Key.Purpose) -> Key | None:
    """Returns the deployment's signing key for this purpose, if it exists."""
    return Key.objects.filter(purpose=purpose, owner=DEPLOYMENT).first()


@retry_on_deadlock
def ensure_signing_key(purpose: Key.Purpose, *, now: datetime) -> Key:
    """Returns the deployment's signing key for this purpose, an Ed25519 seed. Creates it when it is first needed."""
    if key := find_signing_key(purpose):
        return key
    try:
        with transaction.atomic():
            key = _create_key(purpose, DEPLOYMENT, now)
            audit.record("key.create", by=None, tenant=None, target=key, now=now, purpose=key.purpose)
    except IntegrityError:  # another worker created it first: a constraint allows one for each purpose and owner
        key = Key.objects.get(purpose=purpose, owner=DEPLOYMENT)
    return key


def _create_key(purpose: Key.Purpose, owner: str, now: datetime) -> Key:
    kek_id, kek = keyring().active
    key = Key(purpose=purpose, owner=owner, kek_id=kek_id, created_at=now)
    key.wrapped = crypto.wrap_key(kek, crypto.new_key(), context=wrapping_context(key, kek_id=kek_id))
    key.save(force_insert=True)
    return key


def unwrap(key: Key) -> bytes:
    """Returns the unwrapped key, 32 bytes. WrongKey: the key was destroyed, or the keyring cannot unwrap it.

    Raises: WrongKey.
    """
    if key.wrapped is None:
        raise crypto.WrongKey("the key was destroyed")
    context = wrapping_context(key, kek_id=key.kek_id)
    return crypto.unwrap_key(keyring().key(key.kek_id), bytes(key.wrapped), context=context)


def destroy(key_id: UUID, *, now: datetime) -> None:
    """Deletes the wrapping of a key. Call it in the transaction that records the reason. Triggers refuse to undo it (INV-08)."""
    Key.objects.filter(pk=key_id).update(wrapped=None, destroyed_at=now)


def delete_row(key_id: UUID) -> None:
    """Deletes the row of a destroyed key. Call it after its owner's row was deleted: a trigger refuses it before (INV-08)."""
    Key.objects.filter(pk=key_id)._raw_delete(connection.alias)


# --- Rotation of the master key ---


def rewrap(key: Key) -> bool:
    """Wraps `key` with the active master key. Returns False if another process has changed the row since it was read.

    Raises: WrongKey.
    """
    kek_id, kek = keyring().active
    wrapped = crypto.wrap_key(kek, unwrap(key), context=wrapping_context(key, kek_id=kek_id))
    # The other contenders are a second rotation and a purge: neither's write may be undone, least of all a destruction.
    unchanged = Key.objects.filter(pk=key.pk, kek_id=key.kek_id, wrapped=key.wrapped, destroyed_at=None)
    return unchanged.update(kek_id=kek_id, wrapped=wrapped) == 1


def rotate(*, now: datetime, batch: int = 200) -> Iterator[tuple[int, int]]:
    """Rewraps every key that an older master key wraps. Yields (rewrapped, remaining) after each batch.

    Reads and writes continue meanwhile. If the process is killed, the next run continues where this one stopped. A key that
    cannot be unwrapped is skipped and counts as remaining.
    """
    active, _ = keyring().active
    due = Key.objects.filter(destroyed_at=None).exclude(kek_id=active).order_by("id")
    keys = list(due[:batch])
    while keys:
        with transaction.atomic():
            rewrapped = sum(_try_rewrap(key) for key in keys)
            audit.record("keys.rewrap", by=None, tenant=None, target=None, now=now, kek_id=active, count=rewrapped)
        yield rewrapped, due.count()
        keys = list(due.filter(id__gt=keys[-1].id)[:batch])


def _try_rewrap(key: Key) -> bool:
    try:
        return rewrap(key)
    except crypto.WrongKey:
        return False
