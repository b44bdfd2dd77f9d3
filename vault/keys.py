"""Data keys: made, opened and rewrapped here. The keyring wraps them, the table `Key` keeps them."""

from collections.abc import Iterator
from datetime import datetime
from typing import Final, Protocol

from django.db import IntegrityError, transaction

from tenants import audit
from tenants.retries import retried
from vault import crypto
from vault.keyring import keyring
from vault.models import Key


DEPLOYMENT: Final = "deployment"  # owns what is of no tenant


def context(key: Key, *, kek_id: str) -> bytes:
    """What a wrapping is bound to: it opens in no other row, for no other owner or purpose (INV-05)."""
    return crypto.encode("strongroom/key", str(key.id), key.purpose, key.owner, kek_id)


class KeyOwner(Protocol):
    """What has a data key of its own."""

    @property
    def key_owner(self) -> str:
        """A name that no other owner has or ever gets: the wrapping of the key is bound to it."""


def create_data_key(owner: KeyOwner, *, now: datetime) -> Key:
    """A new random key. To be called inside the transaction that saves its owner."""
    return _create_key(Key.Purpose.COLLECTION, owner.key_owner, now)


def existing_signing_key(purpose: Key.Purpose) -> Key | None:
    return Key.objects.filter(purpose=purpose, owner=DEPLOYMENT).first()


@retried
def signing_key(purpose: Key.Purpose, *, now: datetime) -> Key:
    """The deployment's seed for signatures of this purpose, made when it is first asked for."""
    if key := existing_signing_key(purpose):
        return key
    try:
        with transaction.atomic():
            key = _create_key(purpose, DEPLOYMENT, now)
            audit.record("key.create", by=None, tenant=None, target=key, now=now, purpose=key.purpose)
    except IntegrityError:  # another worker was faster: there is one of each purpose and owner
        key = Key.objects.get(purpose=purpose, owner=DEPLOYMENT)
    return key


def _create_key(purpose: Key.Purpose, owner: str, now: datetime) -> Key:
    kek_id, kek = keyring().active
    key = Key(purpose=purpose, owner=owner, kek_id=kek_id, created_at=now)
    key.wrapped = crypto.wrap_key(kek, crypto.new_key(), context=context(key, kek_id=kek_id))
    key.save(force_insert=True)
    return key


def open_key(key: Key) -> bytes:
    """The key itself. Raises WrongKey if it was destroyed or the keyring does not open it."""
    if key.wrapped is None:
        raise crypto.WrongKey("the key was destroyed")
    return crypto.unwrap_key(keyring().key(key.kek_id), bytes(key.wrapped), context=context(key, kek_id=key.kek_id))


def rewrap(key: Key) -> bool:
    """Wraps `key` with the active key-encryption key; False if somebody else changed the row meanwhile."""
    kek_id, kek = keyring().active
    wrapped = crypto.wrap_key(kek, open_key(key), context=context(key, kek_id=kek_id))
    # The other contenders are a second rotation and a purge: neither's write may be undone, least of all a destruction.
    unchanged = Key.objects.filter(pk=key.pk, kek_id=key.kek_id, wrapped=key.wrapped, destroyed_at=None)
    return unchanged.update(kek_id=kek_id, wrapped=wrapped) == 1


def rotate(*, now: datetime, batch: int = 200) -> Iterator[tuple[int, int]]:
    """Rewraps every key that is not wrapped by the active one; yields (rewrapped, left) after each batch.

    Reads and writes go on; killed anywhere, the next run goes on where this one stopped. A key that the keyring does not
    open is passed over and stays among those left.
    """
    active, _ = keyring().active
    due = Key.objects.filter(destroyed_at=None).exclude(kek_id=active).order_by("id")
    keys = list(due[:batch])
    while keys:
        with transaction.atomic():
            rewrapped = sum(_rewrapped(key) for key in keys)
            audit.record("keys.rewrap", by=None, tenant=None, target=None, now=now, kek_id=active, count=rewrapped)
        yield rewrapped, due.count()
        keys = list(due.filter(id__gt=keys[-1].id)[:batch])


def _rewrapped(key: Key) -> bool:
    try:
        return rewrap(key)
    except crypto.WrongKey:
        return False
