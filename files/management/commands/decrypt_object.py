import json
import os
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

from django.core.management.base import BaseCommand, CommandError

from files import offline_decryption
from files.models import StoredFile
from vault.crypto import CorruptObject, WrongKey


class Command(BaseCommand):
    help = (
        "Decrypts a file without a server, in two steps. `decrypt_object export COLLECTION FILENAME > row.json` prints the "
        "database row of a file. Protect it as you protect the database. `decrypt_object open row.json OBJECT [OUTPUT]` needs "
        "only that row, a copy of the object and the keyring (KEYRING or KEYRING_FILE). It refuses an altered object."
    )
    requires_system_checks = ()
    requires_migrations_checks = False

    def add_arguments(self, parser: ArgumentParser) -> None:
        steps = parser.add_subparsers(dest="step", required=True)
        export = steps.add_parser("export", help="print the database row of a file as JSON")
        export.add_argument("collection", help="id of the collection in the API")
        export.add_argument("filename", help="name of the file")
        decrypt = steps.add_parser("open", help="decrypt a copy of the object")
        decrypt.add_argument("row", type=Path, help="file that `export` printed")
        decrypt.add_argument("object", type=Path, help="copy of the encrypted object")
        decrypt.add_argument("output", type=Path, nargs="?", help="new file for the plaintext (default: standard output)")

    def handle(self, *args: Any, step: str, **options: Any) -> None:
        if step == "export":
            self._export(options["collection"], options["filename"])
        else:
            self._open(options["row"], options["object"], options["output"])

    def _export(self, collection: str, filename: str) -> None:
        files = StoredFile.objects.select_related("collection__key").filter(collection__slug=collection, filename=filename)
        if (file := files.first()) is None:
            raise CommandError(f"The collection {collection} has no file {filename}, or does not exist.")
        self.stdout.write(json.dumps(offline_decryption.export_row(file), indent=2))

    def _open(self, row: Path, source: Path, output: Path | None) -> None:
        try:
            with source.open("rb") as ciphertext, _new_file(output) if output else nullcontext(sys.stdout.buffer) as sink:
                for piece in offline_decryption.decrypt(json.loads(row.read_text()), ciphertext):
                    sink.write(piece)
                sink.flush()
        except (WrongKey, CorruptObject, ValueError, KeyError, TypeError, OSError) as error:
            raise CommandError(f"{type(error).__name__}: {error}") from error


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """Creates a file that only its owner can read. Deletes it after an error."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        try:
            yield file
        except BaseException:
            path.unlink()
            raise
