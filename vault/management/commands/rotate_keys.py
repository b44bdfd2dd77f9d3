from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from vault import keys
from vault.keyring import keyring


class Command(BaseCommand):
    help = (
        "Wraps every data key with the active master key, the last one of the keyring. Objects are not touched, reads and "
        "writes go on, and a run that was killed is taken up by the next. Exit 1 while keys are left that the keyring does not "
        "open. A master key may go once nothing is left under it and the last backup from before is gone: docs/keys.md."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        active, _ = keyring().active
        total, left = 0, 0
        for rewrapped, left in keys.rotate(now=timezone.now()):
            total += rewrapped
            self.stdout.write(f"{total} rewrapped, {left} left")
        self.stdout.write(f"{total} data keys rewrapped; all but {left} are under {active}")
        if left:
            raise CommandError("The keyring does not open the rest: put the old master key back, before the active one.")
