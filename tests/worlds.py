"""Worlds: initial states of the database and the buckets, built once in a run and restored for each test.

A module, class or test names the function that builds its world:

    pytestmark = [pytest.mark.django_db, starts_from(november)]

A fixture can name it as well, for all tests that use the fixture:

    @pytest.fixture
    @provides_world(november)
    def slug(built: str) -> str: ...

The function takes no arguments and returns what the tests need to refer to: rows, names, tokens. It runs once, outside of a
transaction, with the default buckets. The fixture `built` is a new copy of its result for each test. A test without a world
starts from an empty database.
"""

import fcntl
import pickle
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import psycopg
import pytest
from django.conf import settings
from django.contrib.contenttypes.models import ContentType
from django.core.management import call_command
from django.db import connection, connections
from django.db.backends.postgresql.base import DatabaseWrapper as PostgreSQL
from psycopg import sql

from vault import identity
from vault.stores import ensure_buckets


Build = Callable[[], Any]
Function = TypeVar("Function", bound=Callable[..., object])
EMPTY: Final = "empty"
OBJECTS: Final = Path(settings.HOME) / "objects"


class Databases:
    """The database of this process: a copy of the saved database of the current world."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._current = ""  # the world that the database is restored to; empty if a test has changed it
        self._objects = EMPTY  # the world that the default buckets were last restored to
        self._original = settings.DATABASES["default"]["NAME"]
        self._is_sqlite = connection.vendor == "sqlite"
        test_name = settings.DATABASES["default"].get("TEST", {}).get("NAME")
        self._name = str(test_name or f"test_{self._original}")
        connection.close()
        settings.DATABASES["default"]["NAME"] = connection.settings_dict["NAME"] = self._name
        with self._saved(EMPTY) as is_new:
            if is_new:
                self._create()
                call_command("migrate", verbosity=0, interactive=False)
                self._save(EMPTY, None)

    def restore(self, build: Build | None) -> None:
        """Restores the database and the default buckets to the initial state of the world; builds the world if necessary."""
        name = _name_of(build)
        if build is not None:
            with self._saved(name) as is_new:
                if is_new:
                    self._load(EMPTY)
                    _load_objects(None)
                    with vault_identity_checked():
                        self._save(name, build())
        if name != self._current:
            self._load(name)
        if name != EMPTY or self._objects != EMPTY:
            _load_objects(self._folder / name)
            self._objects = name

    def built(self, build: Build) -> Any:
        return pickle.loads((self._folder / _name_of(build) / "built").read_bytes())  # noqa: S301  written by `_save`

    def buckets(self, build: Build | None) -> Path:
        """Returns the folder that has a subfolder for each bucket alias with objects of the world."""
        return self._folder / _name_of(build) / "objects"

    @property
    def migrated(self) -> str:
        """The name of the PostgreSQL database with the result of `migrate` and no other rows; empty on SQLite."""
        return "" if self._is_sqlite else self._template(EMPTY)

    def mark_changed(self) -> None:
        """Records that a test has committed a transaction, so that the database must be restored before the next test."""
        self._current = ""

    def close(self) -> None:
        self._drop(self._name)
        connection.settings_dict["NAME"] = settings.DATABASES["default"]["NAME"] = self._original

    @contextmanager
    def _saved(self, name: str) -> Iterator[bool]:
        """Yields whether the block must build and save the world. Other processes of the run wait for the end of the block."""
        self._folder.mkdir(parents=True, exist_ok=True)
        done = self._folder / name / "built"
        if done.exists():
            yield False
            return
        with (self._folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield not done.exists()

    def _save(self, name: str, result: Any) -> None:
        folder = self._folder / name
        (folder / "objects").mkdir(parents=True, exist_ok=True)
        if OBJECTS.exists():
            shutil.copytree(OBJECTS, folder / "objects", dirs_exist_ok=True)
        connections.close_all()
        if self._is_sqlite:
            shutil.copyfile(self._name, folder / "database")  # closing the last connection empties the write-ahead log
        else:
            self._copy(self._name, self._template(name))
        (folder / "new").write_bytes(pickle.dumps(result))
        (folder / "new").rename(folder / "built")
        self._current = name

    def _load(self, name: str) -> None:
        connections.close_all()
        if self._is_sqlite:
            self._drop(self._name)
            shutil.copyfile(self._folder / name / "database", self._name)
        else:
            self._copy(self._template(name), self._name)
        ContentType.objects.clear_cache()
        self._current = name

    # --- Operations that differ between the two databases ---

    def _create(self) -> None:
        self._drop(self._name)
        if not self._is_sqlite:
            self._execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(self._name)))

    def _drop(self, name: str) -> None:
        connections.close_all()
        if self._is_sqlite:
            # Unlinking makes a new file, so that a connection that a test left open in a thread keeps the old one.
            for suffix in ("", "-wal", "-shm"):
                Path(f"{name}{suffix}").unlink(missing_ok=True)
        else:
            self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def _template(self, name: str) -> str:
        return f"{self._name.rpartition('_gw')[0] or self._name}_{name}"[:63]

    def _copy(self, source: str, target: str) -> None:
        self._drop(target)
        names = sql.Identifier(target), sql.Identifier(source)
        self._execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*names))

    def _execute(self, statement: sql.Composed) -> None:
        if isinstance(own := connections["default"], PostgreSQL):
            own.close_pool()
        with _server() as server:
            server.execute(statement)


@contextmanager
def vault_identity_checked() -> Iterator[None]:
    """Makes this process act as if it had just checked the vault's identity: it writes no marker and creates no signing key."""
    far_future = time.monotonic() + 24 * 3600
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identity, "_checked_at", {"vault": far_future, "history": far_future})
        yield


def drop_worlds() -> None:
    """Drops the PostgreSQL databases at the end of a run. The SQLite files are in the folder of the run."""
    if connection.vendor != "sqlite":
        ours = f"test_{settings.DATABASES['default']['NAME']}_"
        with _server() as server:
            for (name,) in server.execute("SELECT datname FROM pg_database WHERE starts_with(datname, %s)", [ours]).fetchall():
                server.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _server() -> "closing[psycopg.Connection[Any]]":
    place = connection.settings_dict
    given = {"host": place["HOST"], "port": place["PORT"], "user": place["USER"], "password": place["PASSWORD"]}
    return closing(psycopg.connect(dbname="postgres", autocommit=True, **given))


def _name_of(build: Build | None) -> str:
    return EMPTY if build is None else f"{build.__module__.removeprefix('tests.')}_{build.__qualname__}".replace(".", "_")


def _load_objects(world: Path | None) -> None:
    if OBJECTS.exists():
        shutil.rmtree(OBJECTS)
    if world is not None:
        shutil.copytree(world / "objects", OBJECTS)
    ensure_buckets()


def starts_from(build: Build) -> pytest.MarkDecorator:
    """Returns the mark for tests that start from the world that `build` builds."""
    return pytest.mark.world.with_args(build)


def provides_world(build: Build) -> Callable[[Function], Function]:
    """Returns a decorator for the function of a fixture: tests that use the fixture start from this world.

    A world that the test names itself takes precedence. If a test uses several such fixtures, the one that depends on the others
    decides.
    """

    def decorate(function: Function) -> Function:
        _builds_of_fixtures[function] = build
        return function

    return decorate


_builds_of_fixtures: dict[Callable[..., object], Build] = {}


def world_builder_of(node: pytest.Item) -> Build | None:
    if marker := node.get_closest_marker("world"):
        named: Build = marker.args[0]
        return named
    info = getattr(node, "_fixtureinfo", None)
    definitions = {name: found[-1] for name, found in info.name2fixturedefs.items()} if info else {}

    def depth(name: str) -> int:
        others = [each for each in definitions[name].argnames if each in definitions and each != name]
        return 1 + max(map(depth, others), default=0)

    builds: dict[int, set[Build]] = {}
    for name, definition in definitions.items():
        if build := _builds_of_fixtures.get(definition.func):
            builds.setdefault(depth(name), set()).add(build)
    if not builds:
        return None
    deepest = builds[max(builds)]
    assert len(deepest) == 1, f"{node.nodeid} uses fixtures with different worlds: name one with starts_from"
    return deepest.pop()
