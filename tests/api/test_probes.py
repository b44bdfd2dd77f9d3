"""GET /healthz and /readyz: for orchestrators, which ask a process by its address and have no token."""

import logging
from pathlib import Path

import pytest
from django.conf import settings
from django.db import connection
from django.test import Client

from tenants.work import triggers
from vault.stores import get_store
from vault.stores.local import LocalStore


@pytest.fixture
def probe() -> Client:
    return Client(SERVER_NAME="10.1.2.3")


def test_healthz_needs_neither_a_known_host_nor_the_database(probe: Client) -> None:
    assert "10.1.2.3" not in settings.ALLOWED_HOSTS
    answer = probe.get("/healthz")

    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert answer["Cache-Control"] == "no-store"


def test_probes_only_answer_questions(probe: Client) -> None:
    assert probe.post("/healthz").status_code == 405
    assert probe.delete("/readyz").status_code == 405


@pytest.mark.django_db
def test_readyz_when_all_is_well(probe: Client) -> None:
    answer = probe.get("/readyz")

    assert answer.status_code == 200
    assert set(answer.json()["checks"].values()) == {"ok"}


@pytest.mark.django_db
def test_readyz_names_a_store_that_is_gone_and_says_no_more(
    probe: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = get_store("vault")
    assert isinstance(store, LocalStore)
    monkeypatch.setattr(store, "location", str(tmp_path / "unmounted"))

    with caplog.at_level(logging.WARNING):
        answer = probe.get("/readyz")

    assert answer.status_code == 503
    assert {name for name, result in answer.json()["checks"].items() if result != "ok"} == {"storage"}
    assert str(tmp_path) not in answer.content.decode()
    assert "not ready" in caplog.text


@pytest.mark.django_db
def test_readyz_misses_the_triggers_of_the_audit_trail(probe: Client) -> None:
    triggers.remove(connection)

    answer = probe.get("/readyz")

    assert answer.status_code == 503
    assert answer.json()["checks"]["guards"] == "failed"


@pytest.mark.django_db
def test_readyz_reads_the_keyring(probe: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "KEYRING", "not a keyring")

    assert probe.get("/readyz").json()["checks"]["keyring"] == "failed"
