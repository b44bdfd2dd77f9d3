"""API errors of keys, stores and the deployment's identity. `tenants.errors` has the errors that all apps share."""

from tenants.errors import Unavailable


class KeyUnavailable(Unavailable):
    """The key of a collection cannot be unwrapped, usually because the keyring lacks its master key."""

    default_detail = "The key of this collection is unavailable. An operator must check the keyring."
    default_code = "key_unavailable"


class StorageUnavailable(Unavailable):
    """A StoreError, in the form in which clients receive it."""

    default_detail = "The storage is unavailable. Try again later."
    default_code = "storage_unavailable"


class ForeignVault(Unavailable):
    """The vault has no mark, or the mark of another database."""

    default_detail = "The storage does not belong to this database. An operator must check the configuration."
    default_code = "foreign_vault"


class DatabaseRestored(Unavailable):
    """The vault records destructions or audit events that this database lacks, so the database is a backup."""

    default_detail = (
        "The database is older than the storage. An operator must apply the ledger before content is available again."
    )
    default_code = "database_restored"
