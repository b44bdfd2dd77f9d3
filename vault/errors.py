"""Refusals that come from keys and stores. See tenants.errors for the shared ones."""

from tenants.errors import Unavailable


class KeyUnavailable(Unavailable):
    default_detail = "The keyring does not open this collection."
    default_code = "key_unavailable"


class StorageUnavailable(Unavailable):
    default_detail = "The storage does not answer."
    default_code = "storage_unavailable"


class ForeignVault(Unavailable):
    default_detail = "The storage is not the one that belongs to this database. An operator has to look."
    default_code = "foreign_vault"


class DatabaseRestored(Unavailable):
    default_detail = "The database is older than the storage: an operator has to say what of it still counts."
    default_code = "database_restored"
