from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from vault import keys
from vault.keyring import keyring


class Command(BaseCommand):
    help = (
        "Wraps every data key with the active master key, the last one in the keyring. Objects are not changed, and reads "
        "and writes continue. If a run is killed, the next one continues it. The exit status is 1 if any data key cannot be "
        "unwrapped, usually because the keyring lacks its master key. Remove an old master key when no data key and no "
        "remaining backup uses it: docs/operations/rotation.md."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        active, _ = keyring().active
        total, remaining = 0, 0
        for rewrapped, remaining in keys.rotate(now=timezone.now()):
            total += rewrapped
            self.stdout.write(f"{total} rewrapped, {remaining} remaining")
        self.stdout.write(f"{total} data keys rewrapped, {remaining} remaining; the active master key is {active}")
        if remaining:
            raise CommandError(
                "The remaining data keys cannot be unwrapped. If the keyring lacks their old master key, add it again, before "
                "the active one."
            )
