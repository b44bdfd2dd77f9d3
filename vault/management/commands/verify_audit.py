from argparse import ArgumentParser
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from tenants import audit
from tenants.models import AuditHead
from vault import audit_checkpoints
from vault.audit_checkpoints import Verdict
from vault.crypto import WrongKey
from vault.stores import StoreError


STALE: Final = timedelta(hours=1)


class Command(BaseCommand):
    help = (
        "Checks every event of every audit chain against its hash, its columns, the event before it and the chain's head, and "
        "the chains against the heads that were signed and kept in the bucket. Prints the first bad event of each chain that is "
        "damaged and exits with 1 if there is any. Changes nothing, and may run while the server does."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--chain", help="only this one: a tenant's uuid, or `platform`")
        parser.add_argument("--all", action="store_true", help="check every publication, not only the newest")
        parser.add_argument("--public-key", action="store_true", help="print the key that verifies publications, and end")

    def handle(self, *, chain: str | None, public_key: bool, **options: Any) -> None:
        if public_key:
            self._print_public_key()
            return
        damaged = set()
        for damage in audit.verify(chain):
            self.stdout.write(str(damage))
            damaged.add(damage.chain)
        try:
            verdict = audit_checkpoints.verify(chain=chain, every=options["all"])
        except (StoreError, FileNotFoundError, WrongKey) as error:
            raise CommandError(f"The signed heads could not be read: {error}") from error
        for damage in verdict.damages:
            if damage.chain not in damaged:
                self.stdout.write(str(damage))
                damaged.add(damage.chain)
        for problem in verdict.bad:
            self.stdout.write(str(problem))
        self._print_freshness(verdict, now=timezone.now())
        if damaged or verdict.bad:
            raise CommandError(f"Damaged chains: {len(damaged)}. Damaged publications: {len(verdict.bad)}.")
        chains = AuditHead.objects.filter(**{"chain": chain} if chain else {}).count()
        if chain and not chains:
            raise CommandError(f"There is no chain {chain}.")
        self.stdout.write(f"The audit trail is whole: {chains} chains.")

    def _print_public_key(self) -> None:
        try:
            pem = audit_checkpoints.public_key()
        except WrongKey as error:
            raise CommandError(f"The keyring does not open the key: {error}") from error
        if pem is None:
            raise CommandError("There is no key yet: the first publication makes it.")
        self.stdout.write(pem.rstrip())

    def _print_freshness(self, verdict: Verdict, *, now: datetime) -> None:
        newest = verdict.newest
        if newest is None:
            if not verdict.bad:
                self.stdout.write("No heads have been signed yet: a tail that was cut would not show.")
            return
        self.stdout.write(
            f"Signed heads: {len(verdict.published)} publications since {Path(verdict.published[0]).stem}, "
            f"the newest of {newest.at:%Y-%m-%d %H:%M} UTC; {verdict.unsigned} events have come since."
        )
        if verdict.unsigned and now - newest.at > STALE:
            self.stderr.write(
                "That is over an hour ago. Worker and beat publish every ten minutes; their log says what is wrong."
            )
