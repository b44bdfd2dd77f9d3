"""Row locks. To avoid deadlocks, lock the collection first, then its rows, and the head of the audit chain last."""

from files.models import Collection, StoredFile
from tenants.errors import NotFound


def lock_collection(collection: Collection) -> Collection:
    """Locks the row until the end of the transaction, and returns its current state with its tenant.

    Raises: NotFound.
    """
    locked = Collection.objects.select_for_update(of=("self",)).select_related("tenant").filter(pk=collection.pk).first()
    if locked is None:
        raise NotFound
    return locked


def lock_file(file: StoredFile) -> tuple[Collection, StoredFile]:
    """Locks the collection and the file until the end of the transaction, and returns their current states.

    Raises: NotFound.
    """
    collection = lock_collection(file.collection)
    locked = StoredFile.objects.select_for_update().filter(pk=file.pk).first()
    if locked is None:
        raise NotFound
    locked.collection = collection
    return collection, locked
