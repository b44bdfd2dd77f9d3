"""pytest plugin of the second run of bin/test: on another database only what uses the database is worth repeating.

Tests marked `any_database` use one, and attack or break something else.
"""

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    uses: list[pytest.Item] = []
    others: list[pytest.Item] = []
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        is_user = item.get_closest_marker("django_db") or {"db", "transactional_db", "django_db_setup"} & set(fixtures)
        (uses if is_user and not item.get_closest_marker("any_database") else others).append(item)
    config.hook.pytest_deselected(items=others)
    items[:] = uses
