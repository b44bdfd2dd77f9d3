"""Migrations that change what is there: an installation of before, brought up to today (F-37)."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from tenants import triggers


pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.both_databases]


@pytest.fixture
def before_grants_were_given() -> Iterator[Any]:
    """The models of a database in which all members of a tenant wrote to its collections."""
    newest = MigrationExecutor(connection).loader.graph.leaf_nodes()
    executor = MigrationExecutor(connection)
    triggers.remove(connection)  # which the command `migrate` does by itself
    try:
        yield executor.migrate([("files", "0002_grants")]).apps
    finally:
        MigrationExecutor(connection).migrate(newest)
        triggers.install(connection)


def test_creators_manage_what_they_made_and_grants_know_their_tenant(before_grants_were_given: Any, now: datetime) -> None:
    models = before_grants_were_given.get_model
    alice, bob, gone = (
        models("tenants", "User").objects.create(username=name, email=f"{name}@x.org") for name in ("alice", "bob", "gone")
    )
    acme, globex = (
        models("tenants", "Tenant").objects.create(slug=slug, name=slug, created_at=now) for slug in ("acme", "globex")
    )
    for user, tenant in ((alice, acme), (bob, globex)):
        models("tenants", "Membership").objects.create(user=user, tenant=tenant, roles=["member"], created_at=now)
    for tenant, creator in ((acme, alice), (globex, bob), (acme, gone), (globex, None)):
        name = f"{tenant.slug}-{creator and creator.username}"
        key = models("files", "Key").objects.create(purpose="collection", owner=name, kek_id="2026", wrapped=b"x", created_at=now)
        models("files", "Collection").objects.create(
            slug=name, tenant=tenant, display_name=name, cipher="AES-GCM", key=key, created_at=now, created_by=creator
        )

    executor = MigrationExecutor(connection)
    today = executor.migrate(executor.loader.graph.leaf_nodes()).apps

    grants = today.get_model("files", "Grant").objects.order_by("collection__slug")
    assert list(
        grants.values_list("collection__slug", "tenant__slug", "user__username", "level", "membership__user__username")
    ) == [
        ("acme-alice", "acme", "alice", 5, "alice"),
        ("globex-bob", "globex", "bob", 5, "bob"),
    ]
