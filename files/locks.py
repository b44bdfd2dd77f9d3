"""Row locks. The collection first, then what is in it, and the audit chain's head last: everybody in the same order."""

from files.models import Collection, StoredFile
from tenants.errors import NotFound


def lock_collection(collection: Collection) -> Collection:
    """As it is now, with its tenant; whoever else wants it waits for the transaction's end. Raises NotFound if it is gone."""
    locked = Collection.objects.select_for_update(of=("self",)).select_related("tenant").filter(pk=collection.pk).first()
    if locked is None:
        raise NotFound
    return locked


def lock_file(file: StoredFile) -> tuple[Collection, StoredFile]:
    collection = lock_collection(file.collection)
    locked = StoredFile.objects.select_for_update().filter(pk=file.pk).first()
    if locked is None:
        raise NotFound
    locked.collection = collection
    return collection, locked
