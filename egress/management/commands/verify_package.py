from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from egress.package import verify
from egress.package.manifest import signing_keys


class Command(BaseCommand):
    help = (
        "Verifies a released package: the signature of its manifest, and every byte of its files. Exits with 1 if it is not "
        "authentic. With --public-key it needs no configured installation: no secrets, no database, no server."
    )

    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("package", type=Path, help="the zip file")
        parser.add_argument(
            "--public-key",
            type=Path,
            action="append",
            help="PEM file with a key from egress/signing-keys/; may be repeated. Default: the keys of this installation",
        )

    def handle(self, *, package: Path, public_key: list[Path] | None, **options: Any) -> None:
        try:
            pems = [path.read_bytes() for path in public_key] if public_key else _own_keys()
            manifest = verify.verify(package, [_load(pem) for pem in pems])
        except OSError as error:
            raise CommandError(f"{error.filename}: {error.strerror}") from None
        except verify.BadPackage as error:
            raise CommandError(f"The package is not authentic: {error}.") from None
        request, files = manifest["request"], manifest["files"]
        self.stdout.write(
            f"Request {request['id']} of {request['requester']['username']}: {_in_one_line(request['justification'])}"
        )
        for decision in manifest["decisions"]:
            who = f"{decision['role']}, {decision['by']['username']}, {decision['at']}"
            self.stdout.write(f"  {decision['verdict']} by {who}: {_in_one_line(decision['reason'])}")
        for file in files:
            self.stdout.write(f"  {file['sha256']}  {file['name']}")
        self.stdout.write(f"The package is authentic: {len(files)} files, {sum(file['length'] for file in files)} bytes.")


def _in_one_line(words: str) -> str:
    """Joins lines, so that a text by a user cannot imitate a line of the output."""
    return " ".join(words.split())


def _own_keys() -> list[bytes]:
    if not settings.KEYRING:
        raise CommandError("No installation is configured here. Give the key with --public-key.")
    keys = [key.public_key.encode() for key in signing_keys()]
    if not keys:
        raise CommandError("This installation has no signing key yet. Give the key with --public-key.")
    return keys


def _load(pem: bytes) -> Ed25519PublicKey:
    try:
        key = load_pem_public_key(pem)
    except ValueError:
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise CommandError("The public key must be an Ed25519 key in a PEM file.")
    return key
