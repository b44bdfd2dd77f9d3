"""The vault of the API tests: a local directory that tells what is asked of it. The only thing here that is not the real one."""

from pathlib import Path
from typing import Any

from files.models import StoredFile
from vault.stores import ObjectBody, Stat
from vault.stores.local import LocalStore


class WatchedBody:
    def __init__(self, body: ObjectBody, opened: set["WatchedBody"]) -> None:
        self._body, self._opened = body, opened
        opened.add(self)

    def read(self, size: int) -> bytes:
        return self._body.read(size)

    def close(self) -> None:
        self._opened.discard(self)
        self._body.close()


class WatchedStore(LocalStore):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.bodies: set[WatchedBody] = set()  # those that are open
        self.forget()

    def forget(self) -> None:
        self.reads: list[tuple[int, int]] = []  # (start, length) of every range that was asked for
        self.stats = 0
        self.created = 0

    def open(self, key: str, *, start: int, length: int, etag: str | None) -> Any:  # type: ignore[override]
        self.reads.append((start, length))
        stat, body = super().open(key, start=start, length=length, etag=etag)
        return stat, WatchedBody(body, self.bodies)

    def stat(self, key: str) -> Stat:
        self.stats += 1
        return super().stat(key)

    def create(self, key: str, **options: Any) -> Any:
        self.created += 1
        return super().create(key, **options)

    def keys(self) -> set[str]:
        """Every file in the directory, finished or not."""
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file()}

    def path_of(self, filename: str) -> Path:
        return self.root / StoredFile.objects.get(filename=filename).object_key
