from argparse import ArgumentParser
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from tenants import audit
from tenants.models import AuditHead
from vault import audit_checkpoints
from vault.audit_checkpoints import Verification
from vault.crypto import WrongKey
from vault.stores import StoreError


STALE_AFTER: Final = timedelta(hours=1)


class Command(BaseCommand):
    help = (
        "Checks every event of every audit chain against its hash, its columns, the event before it and the chain's head, "
        "and the chains against the signed checkpoints in the bucket. Prints the first bad event of each damaged chain, "
        "and exits with status 1 if there is any. Changes nothing, and can run while the server is running."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--chain", help="check only this chain: a tenant's uuid, or `platform`")
        parser.add_argument("--all", action="store_true", help="check every checkpoint, not only the newest")
        parser.add_argument("--public-key", action="store_true", help="print the key that verifies checkpoints, and exit")

    def handle(self, *, chain: str | None, public_key: bool, **options: Any) -> None:
        if public_key:
            self._print_public_key()
            return
        damaged = set()
        for damage in audit.verify(chain):
            self.stdout.write(str(damage))
            damaged.add(damage.chain)
        try:
            result = audit_checkpoints.verify(chain=chain, every=options["all"])
        except (StoreError, FileNotFoundError, WrongKey) as error:
            raise CommandError(f"The checkpoints could not be read: {error}") from error
        for damage in result.damages:
            if damage.chain not in damaged:
                self.stdout.write(str(damage))
                damaged.add(damage.chain)
        for problem in result.bad:
            self.stdout.write(str(problem))
        self._print_freshness(result, now=timezone.now())
        if damaged or result.bad:
            raise CommandError(f"Damaged chains: {len(damaged)}. Damaged checkpoints: {len(result.bad)}.")
        chains = AuditHead.objects.filter(**{"chain": chain} if chain else {}).count()
        if chain and not chains:
            raise CommandError(f"There is no chain {chain}.")
        self.stdout.write(f"The audit trail is intact: {chains} chains.")

    def _print_public_key(self) -> None:
        try:
            pem = audit_checkpoints.public_key()
        except WrongKey as error:
            raise CommandError(f"The signing key cannot be unwrapped: {error}") from error
        if pem is None:
            raise CommandError("There is no signing key yet. It is created with the first checkpoint.")
        self.stdout.write(pem.rstrip())

    def _print_freshness(self, result: Verification, *, now: datetime) -> None:
        newest = result.newest
        if newest is None:
            if not result.bad:
                self.stdout.write("There is no checkpoint yet: events deleted from the end of a chain would not be detected.")
            return
        self.stdout.write(
            f"Checkpoints: {len(result.keys)} since {Path(result.keys[0]).stem}, "
            f"the newest from {newest.at:%Y-%m-%d %H:%M} UTC; {result.unsigned} events have been recorded since."
        )
        if result.unsigned and now - newest.at > STALE_AFTER:
            self.stderr.write(
                "The newest checkpoint is over an hour old. Worker and beat publish one every ten minutes; see their log."
            )
