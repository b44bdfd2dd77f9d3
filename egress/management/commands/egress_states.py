from typing import Any

from django.core.management.base import BaseCommand

from egress.states import diagram


PAGE = """# The states of an egress request

Printed by `manage.py egress_states` from the table in `egress/states.py`, which the service, the database's guard and the tests
read, too. `bin/check` compares.

```mermaid
{diagram}```
"""


class Command(BaseCommand):
    help = "Prints docs/egress-states.md: the states of an egress request, and who moves it from which to which."

    requires_system_checks = []

    def handle(self, **options: Any) -> None:
        self.stdout.write(PAGE.format(diagram=diagram()), ending="")
