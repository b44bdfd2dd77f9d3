"""What a purge leaves is noise: a copy of the objects and a database dump from afterwards give nothing, with every key there is.

INV-07, INV-08. The attacker has the keyring, the objects and all that is said of a file but its key, salt and commitment.
A dump from before opens everything until the master key is gone: docs/keys.md, docs/operations/rotation.md.
"""

import io
import random
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from django.db import connection
from django.test import override_settings
from pytest_django import Settings

from files import offline_decryption
from files.models import Collection, StoredFile
from tests import servers
from tests.needs import mark_dependents
from tests.services import worlds
from tests.services.egress import fill
from tests.services.keyrings import RETIRED
from tests.services.purging import assert_destroyed, begin, work_on
from tests.unit import stock
from tests.worlds import starts_from
from vault import crypto, keys
from vault.models import Key
from vault.stores import get_store


pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.both_databases]
if connection.vendor == "postgresql":
    pytestmark.append(pytest.mark.needs("pg_dump"))
SEGMENT = 4096
CONTENTS = {f"{length}.bin": random.Random(length).randbytes(length) for length in (0, 1, SEGMENT, 3 * SEGMENT + 17)}
SECRET = {"key", "key_salt", "key_commitment"}


@dataclass(frozen=True)
class Saved:
    """A copy of one object, and what everybody may know of it."""

    row: dict[str, Any]  # as `decrypt_object export` has it, without what is secret
    content: bytes
    secrets: list[bytes]  # which no dump may hold afterwards

    @property
    def aad(self) -> bytes:
        row = self.row
        return crypto.associated_data(
            tenant=row["tenant"], collection=row["collection"], file=row["file"], object_id=row["object_id"],
            cipher=row["cipher"], segment_size=row["segment_size"],
        )  # fmt: skip


def save(collection: Collection) -> list[Saved]:
    saved = []
    for file in collection.files.select_related("collection__key"):
        _, body = get_store(file.store).open(file.object_key, start=0, length=file.object_size, etag=None)
        with closing(body):
            content = body.read(file.object_size)
        row = offline_decryption.export_row(file)
        secrets = [bytes(file.key_salt), bytes(file.key_commitment), bytes(file.collection.key.wrapped or b"")]
        saved.append(Saved({name: value for name, value in row.items() if name not in SECRET}, content, secrets))
    assert len(saved) == len(CONTENTS)
    return saved


# --- Dumps ---


@dataclass(frozen=True)
class Dump:
    """All rows of all tables, and the bytes that they lie in."""

    tables: dict[str, list[dict[str, Any]]]
    raw: bytes

    def wrapped_keys(self) -> list[Key]:
        fields = ("purpose", "owner", "kek_id", "wrapped")
        return [Key(id=UUID(str(row["id"])), **{name: row[name] for name in fields}) for row in self.tables["vault_key"]]

    def salts(self) -> list[bytes]:
        """And one that anybody might guess."""
        return [bytes(row["key_salt"]) for row in self.tables["files_storedfile"]] + [bytes(crypto.SALT_SIZE)]

    def holds(self, secret: bytes) -> bool:
        """As bytes, or as the text of a logical dump."""
        in_rows = any(
            (isinstance(value, bytes | memoryview) and secret in bytes(value))
            or (isinstance(value, str) and secret.hex() in value)
            for rows in self.tables.values()
            for row in rows
            for value in row.values()
        )
        return in_rows or secret in self.raw or secret.hex().encode() in self.raw


def dump(folder: Path) -> Dump:
    tables = {}
    for table in connection.introspection.table_names():
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT * FROM {connection.ops.quote_name(table)}")  # noqa: S608  a table's own name
            names = [column.name if hasattr(column, "name") else column[0] for column in cursor.description]
            tables[table] = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    return Dump(tables, sqlite_bytes(folder) if connection.vendor == "sqlite" else logical_dump())


def sqlite_bytes(folder: Path) -> bytes:
    """The database file and its write-ahead log, as a backup of the disk takes them; and they are a database."""
    source = Path(connection.settings_dict["NAME"])
    copies = []
    for name in (source.name, f"{source.name}-wal"):
        copies.append(folder / name)
        with suppress(FileNotFoundError):
            shutil.copyfile(source.with_name(name), copies[-1])
    raw = b"".join(copy.read_bytes() for copy in copies if copy.exists())
    with closing(sqlite3.connect(copies[0])) as copied:
        assert copied.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert copied.execute("SELECT count(*) FROM vault_key").fetchall() == [(Key.objects.count(),)]
    return raw


def logical_dump() -> bytes:
    """What pg_dump writes."""
    address = servers.DATABASE.rsplit("/", 1)[0]
    command = ["pg_dump", "--dbname", f"{address}/{connection.settings_dict['NAME']}"]
    return subprocess.run(command, check=True, capture_output=True).stdout


# --- The attack ---


def opened_by(dump: Dump, saved: list[Saved]) -> dict[str, set[str]]:
    """Filename -> with what it opens: ours or stock Tink, by any key of the dump and the keyring, with any salt of the dump."""
    opened: dict[str, set[str]] = {}
    for each in saved:
        for key in dump.wrapped_keys():
            for salt in dump.salts():
                for name, plaintext in attempts(each, key, salt):
                    assert plaintext == CONTENTS[each.row["filename"]]
                    opened.setdefault(each.row["filename"], set()).add(name)
    return opened


def attempts(saved: Saved, key: Key, salt: bytes) -> Iterator[tuple[str, bytes]]:
    """What came out, if anything did. The commitment is made to fit, so that the object itself has to refuse."""
    try:
        collection_key = keys.unwrap(key)
    except crypto.WrongKey:
        return
    candidate = crypto.derive_file_key(collection_key, key_salt=salt, aad=saved.aad)
    row = saved.row | {
        "key_salt": salt.hex(),
        "key_commitment": candidate.commitment.hex(),
        "key": {
            "id": str(key.id), "purpose": key.purpose, "owner": key.owner, "kek_id": key.kek_id,
            "wrapped": bytes(key.wrapped or b"").hex(),
        },
    }  # fmt: skip
    with suppress(crypto.CorruptObject):  # and never WrongKey: that fits
        yield "ours", b"".join(offline_decryption.decrypt(row, io.BytesIO(saved.content)))
    with suppress(stock.Refused):
        segment_size = saved.row["segment_size"]
        yield (
            "tink",
            stock.decrypt(saved.content, key_material=candidate.material, aad=saved.aad, segment_size=segment_size),
        )


EVERYTHING = {name: {"ours", "tink"} for name in CONTENTS}


@dataclass(frozen=True)
class World:
    november: Collection  # that will go
    saved: list[Saved]
    controls: list[list[Saved]]  # of alice's other collection, and of another tenant's


@override_settings(FILES_SEGMENT_SIZE=SEGMENT)
def three_collections() -> None:
    clients = worlds.make_people()
    for name, display_name in (("alice", "November"), ("alice", "December"), ("mallory", "November")):
        fill(clients[name], display_name, CONTENTS)


@pytest.fixture
@mark_dependents(starts_from(three_collections))
def world(own_buckets: Path) -> World:
    november, *others = Collection.objects.select_related("key").order_by("pk")
    return World(november, save(november), [save(other) for other in others])


def test_dump_from_before_opens_a_copy_until_the_master_key_is_gone(world: World, settings: Settings, tmp_path: Path) -> None:
    """Which no purge can help: rotate, and retire the old master key later (docs/operations/rotation.md)."""
    before = dump(tmp_path)
    begin(world.november)
    work_on()
    assert_destroyed(world.november)

    for saved in [world.saved, *world.controls]:
        assert opened_by(before, saved) == EVERYTHING
        assert all(before.holds(secret) for each in saved for secret in each.secrets)

    settings.KEYRING = RETIRED
    for saved in [world.saved, *world.controls]:
        assert opened_by(before, saved) == {}


def test_copy_is_noise_from_the_first_moment(world: World, tmp_path: Path) -> None:
    """All salts and commitments are still there, and they are not enough."""
    begin(world.november)

    begun = dump(tmp_path)

    assert opened_by(begun, world.saved) == {}
    assert begun.tables["files_storedfile"] != []
    assert StoredFile.objects.filter(collection=world.november).count() == len(CONTENTS)
    assert [opened_by(begun, saved) for saved in world.controls] == [EVERYTHING] * 2


def test_copy_and_a_dump_from_afterwards_give_nothing(world: World, tmp_path: Path) -> None:
    begin(world.november)
    work_on()
    assert_destroyed(world.november)

    after = dump(tmp_path)

    assert [secret for each in world.saved for secret in each.secrets if after.holds(secret)] == []
    assert opened_by(after, world.saved) == {}
    for saved in world.controls:
        assert all(after.holds(secret) for each in saved for secret in each.secrets)
        assert opened_by(after, saved) == EVERYTHING
