"""One response's bytes: how a transfer ends, and what it gives back."""

import inspect
from collections.abc import Generator
from contextlib import nullcontext
from functools import partialmethod

import pytest
from django.db import OperationalError, connection, transaction
from rest_framework.exceptions import NotFound

from files.errors import TransfersFull
from files.http.streaming import Slots, Transfer, TransferEnded, return_connection


pytestmark = pytest.mark.django_db  # whatever ran before: a transfer gives back the connection that it finds open


def test_transfer_of_a_content_that_ends_early_breaks_and_does_not_just_end() -> None:
    """INV-02: a server that is given no error waits for the rest, or ends the response as if it were whole."""
    transfer = Transfer((piece for piece in [b"abc", b""]), length=5, still_allowed=lambda: True, slots=Slots(1))
    assert next(transfer) == b"abc"
    assert next(transfer) == b""
    with pytest.raises(TransferEnded):
        next(transfer)
    transfer.close()


def test_transfer_that_breaks_is_told_to_the_operator(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Generator[bytes, None, None]:
        yield b"abc"
        raise RuntimeError("canary")

    transfer = Transfer(broken(), length=5, still_allowed=lambda: True, slots=Slots(1))
    next(transfer)
    with pytest.raises(TransferEnded):
        next(transfer)
    transfer.close()
    (record,) = caplog.records
    assert record.getMessage() == "a transfer failed"
    told = {name: value for name, value in vars(record).items() if name in {"error", "sent", "length"}}
    assert told == {"error": "RuntimeError", "sent": 3, "length": 5}  # never the exception's words


def test_transfer_that_is_closed_gives_everything_back_once() -> None:
    slots, pieces = Slots(1), (b"x" for _ in range(99))
    transfer = Transfer(pieces, length=99, still_allowed=lambda: True, slots=slots)
    with pytest.raises(TransfersFull):
        slots.take()
    next(transfer)
    transfer.close()
    transfer.close()
    assert inspect.getgeneratorstate(pieces) == inspect.GEN_CLOSED  # and with it the store's connection
    slots.take()


class DeadDatabase:
    def reserve(self, count: int, *, left: int) -> None:
        raise OperationalError

    refund = partialmethod(reserve, 0, left=0)


def test_transfer_that_cannot_be_paid_ends_and_gives_its_slot_back() -> None:
    """F-23."""
    slots = Slots(1)
    transfer = Transfer((b"x" for _ in range(99)), length=99, still_allowed=lambda: True, slots=slots, meter=DeadDatabase())
    with pytest.raises(TransferEnded):
        next(transfer)
    transfer.close()
    slots.take()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_transfer_asks_every_few_seconds_whether_it_may_go_on(clock: list[float]) -> None:
    """INV-16."""
    asked: list[float] = []

    def still_allowed() -> bool:
        asked.append(clock[0])
        return True

    transfer = Transfer((b"x" for _ in range(99)), length=99, still_allowed=still_allowed, slots=Slots(1))
    for clock[0] in range(12):
        next(transfer)
    transfer.close()
    assert asked == [4, 8]


@pytest.mark.parametrize(("moment", "ends"), [(160, False), (160.5, True)])
def test_transfer_goes_on_for_a_minute_when_nobody_answers(clock: list[float], moment: float, *, ends: bool) -> None:
    """F-23."""

    def still_allowed() -> bool:
        if clock[0] > 100:
            raise OperationalError
        return True

    transfer = Transfer((b"x" for _ in range(99)), length=99, still_allowed=still_allowed, slots=Slots(1))
    for clock[0] in (50, 100, 104, 156):
        next(transfer)
    clock[0] = moment
    with pytest.raises(TransferEnded) if ends else nullcontext():
        next(transfer)
    transfer.close()


def test_transfer_ends_when_the_answer_is_a_refusal(clock: list[float]) -> None:
    def still_allowed() -> bool:
        raise NotFound

    transfer = Transfer((b"x" for _ in range(99)), length=99, still_allowed=still_allowed, slots=Slots(1))
    clock[0] = 4
    with pytest.raises(TransferEnded):
        next(transfer)
    transfer.close()


@pytest.mark.django_db(transaction=True)
def test_transfer_that_asked_gives_the_connection_back() -> None:
    def still_allowed() -> bool:
        connection.ensure_connection()
        connection.close_at = 0
        return True

    transfer = Transfer((b"x" for _ in range(99)), length=99, still_allowed=still_allowed, slots=Slots(1))
    transfer._checked -= 10
    next(transfer)
    assert connection.connection is None
    still_allowed()
    transfer.close()
    assert connection.connection is None


@pytest.mark.django_db(transaction=True)
def test_connection_goes_back_unless_a_transaction_needs_it() -> None:
    connection.ensure_connection()
    connection.close_at = 0  # of an age at which it is given back: PostgreSQL's always are
    with transaction.atomic():
        connection.close_at = 0
        return_connection()
        assert connection.connection is not None
    return_connection()
    assert connection.connection is None
