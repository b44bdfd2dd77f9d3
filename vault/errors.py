"""Refusals that come from keys, stores and the deployment's identity. `tenants.errors` has those that all apps share."""

from tenants.errors import Unavailable


class KeyUnavailable(Unavailable):
    """The wrapped key of a collection cannot be unwrapped: the keyring lacks its master key."""

    default_detail = "The keyring does not open this collection."
    default_code = "key_unavailable"


class StorageUnavailable(Unavailable):
    """A StoreError, as clients get it."""

    default_detail = "The storage does not answer."
    default_code = "storage_unavailable"


class ForeignVault(Unavailable):
    """The vault has no mark, or the mark of another database."""

    default_detail = "The storage is not the one that belongs to this database. An operator has to check the configuration."
    default_code = "foreign_vault"


class DatabaseRestored(Unavailable):
    """The vault knows destructions or audit events that this database does not have: it is a backup."""

    default_detail = "The database is older than the storage. An operator has to apply the ledger before it serves again."
    default_code = "database_restored"
