from typing import Any

from django.core.management.base import BaseCommand, CommandError

from tenants import audit
from tenants.models import AuditHead


class Command(BaseCommand):
    help = (
        "Checks every event of every audit chain against its hash, its columns, the event before it and the chain's head. "
        "Prints the first bad event of each chain that is damaged and exits with 1 if there is any. Changes nothing, and may run "
        "while the server does."
    )

    def handle(self, **options: Any) -> None:
        damaged = 0
        for damage in audit.verify():
            self.stdout.write(str(damage))
            damaged += 1
        if damaged:
            raise CommandError(f"Damaged chains: {damaged}")
        self.stdout.write(f"The audit trail is whole: {AuditHead.objects.count()} chains.")
