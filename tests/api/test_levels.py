"""Any roles with any grants: lists, details and bytes say the same, and what DESIGN's rules say (INV-01, INV-14, F-49)."""

from collections.abc import Callable
from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rest_framework.test import APIClient

from files.models import GRANTABLE_LEVELS, Collection, Grant, Level
from tenants.models import Membership, Tenant, User
from tests.api import paths
from tests.api.worlds import filling, put
from tests.worlds import provides_world


Api = Callable[[User | None], APIClient]
ROLES = ["admin", "member", "auditor", "research_it"]
NAMES = ["a.txt", "b.txt"]
TARGETS = [(target, whom) for target in (None, *NAMES) for whom in ("bob", "everyone")]


def make_filled() -> None:
    with filling(new_collections="private") as (clients, slug):
        for name in NAMES:
            put(clients["alice"], slug, name, name.encode())


@pytest.fixture
@provides_world(make_filled)
def filled(november: str) -> str:
    return november


def expected(roles: set[str], *, shares: bool, grants: dict[tuple[str | None, str], Level]) -> tuple[int, dict[str, int]]:
    """Bob's level on the collection and on each of its files."""
    takes_part = bool(roles & {"admin", "member"})
    counting = {
        target: level
        for target, level in grants.items()
        if takes_part or (target[1] == "bob" and not roles and shares)
    }  # fmt: skip
    on_collection = [5 if "admin" in roles else 2 if "auditor" in roles else 0]
    on_collection += [level for (target, _), level in counting.items() if target is None]
    on_files = {
        name: max(*on_collection, *(level for (target, _), level in counting.items() if target == name), 0) for name in NAMES
    }
    on_collection += [1 for target, _ in counting if target]
    return max(on_collection), {name: level for name, level in on_files.items() if level > 1}


@pytest.mark.parametrize("examples", [5, pytest.param(50, marks=pytest.mark.long)])
def test_what_somebody_sees_follows_from_roles_and_grants(api: Api, filled: str, bob: User, examples: int) -> None:
    @settings(max_examples=examples)
    @given(
        roles=st.sets(st.sampled_from(ROLES)),
        shares=st.booleans(),
        joined_later=st.booleans(),
        grants=st.dictionaries(st.sampled_from(TARGETS), st.sampled_from(GRANTABLE_LEVELS), max_size=4),
    )
    @example(roles={"research_it"}, shares=True, joined_later=True, grants={(None, "bob"): Level.EDITOR})
    def check(roles: set[str], grants: dict[Any, Level], *, shares: bool, joined_later: bool) -> None:
        with transaction.atomic():
            Tenant.objects.filter(slug="acme").update(allow_external_sharing=shares)
            collection = Collection.objects.get()
            membership: Membership | None = Membership.objects.get(user=bob)
            if roles:
                Membership.objects.filter(user=bob).update(roles=sorted(roles))
            else:
                Membership.objects.filter(user=bob).delete()
                membership = None
            for (target, whom), given_level in grants.items():
                Grant.objects.create(
                    tenant=collection.tenant,
                    collection=collection,
                    file=collection.files.get(filename=target) if target else None,
                    user=bob if whom == "bob" else None,
                    membership=membership if whom == "bob" and not joined_later else None,
                    level=given_level,
                    created_at=timezone.now(),
                )
            mine, on_files = expected(roles, shares=shares, grants=grants)

            client = api(bob)
            listed = [case["my_level"] for case in client.get(paths.COLLECTIONS).json()["results"]]
            detail = client.get(paths.collection(filled))
            assert listed == ([Level(mine).label] if mine else [])
            assert [detail.json()["my_level"]] == listed if mine else detail.status_code == 404

            files = client.get(paths.files(filled))
            shown = {file["filename"]: file["my_level"] for file in files.json()["results"]} if mine else {}
            assert shown == {name: Level(level).label for name, level in on_files.items()}
            for name in NAMES:
                one = client.get(paths.file(filled, name))
                assert (one.json()["my_level"] == shown[name]) if name in shown else one.status_code == 404
                level = on_files.get(name, 0)
                content = client.get(paths.content(filled, name))
                assert content.status_code == (404 if level < Level.METADATA else 403 if level < Level.VIEWER else 200)
                if level >= Level.VIEWER:
                    assert content.getvalue() == name.encode()
            transaction.set_rollback(True)

    check()
