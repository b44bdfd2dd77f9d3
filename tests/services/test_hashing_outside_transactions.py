"""Hashing a password waits for its turn, so that it must not hold a transaction: SQLite allows one writer at a time."""

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest
from django.contrib.auth.hashers import MD5PasswordHasher
from django.contrib.auth.tokens import PasswordResetTokenGenerator
from django.db import connection
from pytest_django import Settings
from rest_framework.test import APIClient

from tenants import people
from tenants.models import Tenant, User
from tests.factories import PASSWORD


NEW = "another long password"
pytestmark = pytest.mark.django_db(transaction=True)


class RecordingHasher(MD5PasswordHasher):
    """Records whether each hash was computed in a transaction."""

    algorithm = "recorded_md5"
    is_in_transaction: list[bool] = []

    def encode(self, password: str, salt: str) -> str:
        self.is_in_transaction.append(connection.in_atomic_block)
        return super().encode(password, salt)


@pytest.fixture
def hashes(settings: Settings) -> Iterator[list[bool]]:
    settings.PASSWORD_HASHERS = [f"{__name__}.RecordingHasher", *settings.PASSWORD_HASHERS]
    RecordingHasher.is_in_transaction.clear()
    yield RecordingHasher.is_in_transaction
    RecordingHasher.is_in_transaction.clear()


def post(path: str, **body: str) -> int:
    status: int = APIClient().post(f"/api/v1/auth/{path}", body).status_code
    return status


def test_sign_in(alice: User, hashes: list[bool]) -> None:
    assert post("token/", username="alice", password=PASSWORD) == 200
    assert hashes
    assert not any(hashes)


def test_change_of_a_password(alice: User, api: Callable[[User | None], APIClient], hashes: list[bool]) -> None:
    client = api(alice)
    body = {"current_password": PASSWORD, "new_password": NEW}
    assert client.post("/api/v1/auth/password/change/", body).status_code == 200
    assert hashes
    assert not any(hashes)


def test_reset_of_a_password(alice: User, hashes: list[bool]) -> None:
    token = f"{alice.pk}-{PasswordResetTokenGenerator().make_token(alice)}"
    assert post("password/reset/confirm/", token=token, new_password=NEW) == 204
    assert post("password/reset/confirm/", token=token, new_password=PASSWORD) == 400
    assert User.objects.get(pk=alice.pk).check_password(NEW)
    assert hashes
    assert not any(hashes)


def test_acceptance_of_an_invitation(acme: Tenant, alice: User, now: datetime, hashes: list[bool]) -> None:
    invitation: Any = people.invite(tenant=acme, email="new@example.org", roles=["member"], by=alice, now=now)
    token = people.token_of(invitation)
    assert post("invitations/accept/", token=token, username="newcomer", password=NEW) == 201
    assert User.objects.get(username="newcomer").check_password(NEW)
    assert hashes
    assert not any(hashes)
