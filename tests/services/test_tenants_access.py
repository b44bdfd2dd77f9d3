"""The ways to a tenant: what is not mine is not there (INV-01, INV-16)."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from pytest_django import DjangoAssertNumQueries

from tenants import access
from tenants.errors import Invalid, NotFound
from tenants.models import Membership, Tenant, User


def test_roles_of_a_member_in_one_query(
    alice: User, globex: Tenant, acme: Tenant, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    Membership.objects.create(user=alice, tenant=globex, roles=["auditor", "member"], created_at=datetime.now(UTC))
    with django_assert_num_queries(1):
        assert access.principal_of(alice).roles == {acme.pk: frozenset({"admin"}), globex.pk: frozenset({"auditor", "member"})}


def test_roles_of_a_suspended_tenant_are_none(alice: User, acme: Tenant) -> None:
    Tenant.objects.update(is_active=False)
    assert access.principal_of(alice).roles == {}


def test_roles_of_somebody_deactivated_since_are_none(alice: User) -> None:
    """The instance is as old as the download that asks again with it."""
    User.objects.update(is_active=False)
    assert alice.is_active
    assert access.principal_of(alice).roles == {}


def test_get_tenant_as_a_member_or_superuser(alice: User, bob: User, root: User, acme: Tenant) -> None:
    assert [access.get_tenant(user, "acme") for user in (alice, bob, root)] == [acme] * 3


@pytest.mark.parametrize("slug", ["globex", "nowhere", "", "ACME"])
def test_get_tenant_of_others_or_nobody_is_not_found(alice: User, globex: Tenant, slug: str) -> None:
    with pytest.raises(NotFound):
        access.get_tenant(alice, slug)


@pytest.mark.parametrize("actor", ["alice", "root"])
def test_get_tenant_that_is_suspended_is_not_found(request: pytest.FixtureRequest, acme: Tenant, actor: str) -> None:
    user = request.getfixturevalue(actor)
    Tenant.objects.update(is_active=False)
    with pytest.raises(NotFound):
        access.get_tenant(user, "acme")


def test_get_tenant_as_a_superuser_deactivated_since_is_not_found(root: User, acme: Tenant) -> None:
    User.objects.update(is_active=False)
    with pytest.raises(NotFound):
        access.get_tenant(root, "acme")


def join(user: User, tenant: Tenant) -> None:
    Membership.objects.create(user=user, tenant=tenant, roles=["member"], created_at=datetime.now(UTC))


def test_sole_tenant_of_one(alice: User, acme: Tenant, globex: Tenant) -> None:
    assert access.sole_tenant(alice) == acme


@pytest.mark.parametrize(
    "arrange",
    [
        lambda user, globex: join(user, globex),
        lambda user, globex: Tenant.objects.update(is_active=False),
        lambda user, globex: Membership.objects.all().delete(),
    ],
    ids=["several", "suspended", "none"],
)
def test_sole_tenant_of_several_or_none_names_the_field(
    alice: User, globex: Tenant, arrange: Callable[[User, Tenant], object]
) -> None:
    arrange(alice, globex)
    with pytest.raises(Invalid) as error:
        access.sole_tenant(alice)
    assert "tenant" in error.value.detail


def test_sole_tenant_ignores_a_suspended_one(alice: User, acme: Tenant, globex: Tenant) -> None:
    join(alice, globex)
    Tenant.objects.filter(pk=globex.pk).update(is_active=False)
    assert access.sole_tenant(alice) == acme
