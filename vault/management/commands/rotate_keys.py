from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from vault import keys
from vault.keyring import keyring


class Command(BaseCommand):
    help = (
        "Wraps every data key with the active master key, which is the last one of the keyring. Objects are not touched, "
        "and reads and writes continue. If a run is killed, the next one continues it. The exit status is 1 while there "
        "are keys that the keyring does not open. Remove an old master key once no data key is under it and no backup "
        "from before is left: docs/operations/rotation.md."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        active, _ = keyring().active
        total, remaining = 0, 0
        for rewrapped, remaining in keys.rotate(now=timezone.now()):
            total += rewrapped
            self.stdout.write(f"{total} rewrapped, {remaining} remaining")
        self.stdout.write(f"{total} data keys rewrapped; all but {remaining} are under {active}")
        if remaining:
            raise CommandError(
                "The keyring does not open the remaining keys: put the old master key back into it, before the active one."
            )
