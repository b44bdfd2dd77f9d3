"""The queue for password hashes is bounded, and shared fairly between networks."""

import threading
from functools import partial

import pytest
from django.contrib.auth.hashers import check_password, identify_hasher
from pytest_django import Settings

from tenants.auth.hashing import Argon2PasswordHasher, FairQueue
from tenants.errors import HashingFull
from tests.live.waiting import LIMIT, wait_for


HASHER = "tenants.auth.hashing.Argon2PasswordHasher"
OLD = "argon2$argon2id$v=19$m=102400,t=2,p=8$pI1NSUrF4t2FRoh1e/B10A$NGumCfibmUoWkaMwoWrVsYdKnsjSgeH3cmH1T5m3gyc"


class Guest:
    """Somebody who takes a turn, and holds it until `leave`."""

    def __init__(self, queue: FairQueue, network: str, admitted: list[str]) -> None:
        self.outcome = ""
        self._may_leave = threading.Event()
        self._queue, self._network, self._admitted = queue, network, admitted
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._queue.turn(self._network):
                self._admitted.append(self._network)
                self.outcome = "admitted"
                self._may_leave.wait(LIMIT)
        except HashingFull:
            self.outcome = "refused"

    def leave(self) -> None:
        self._may_leave.set()
        self._thread.join(LIMIT)


def has_arrived(guest: Guest, queue: FairQueue, waiting_before: int) -> bool:
    return bool(guest.outcome) or queue.waiting > waiting_before


def has_length(values: list[str], length: int) -> bool:
    return len(values) == length


def arrive(queue: FairQueue, networks: str, admitted: list[str]) -> list[Guest]:
    """One guest for each letter, in this order."""
    guests = []
    for network in networks:
        before = queue.waiting
        guests.append(guest := Guest(queue, network, admitted))
        wait_for(partial(has_arrived, guest, queue, before))
    return guests


def test_waiting_networks_take_turns() -> None:
    queue, admitted = FairQueue(1), list[str]()
    guests = arrive(queue, "aaaabc", admitted)
    for number in range(1, len(guests) + 1):
        wait_for(partial(has_length, admitted, number))
        present = next(guest for guest in guests if guest.outcome == "admitted")
        present.leave()
        guests.remove(present)
    assert "".join(admitted) == "aabcaa"


def test_full_queue_refuses_the_last_of_the_network_that_waits_most() -> None:
    queue, admitted = FairQueue(1, max_waiting=3), list[str]()
    guests = arrive(queue, "aaaa", admitted)
    newcomer = Guest(queue, "b", admitted)
    wait_for(lambda: guests[3].outcome == "refused")
    assert not newcomer.outcome
    for guest in [guests[0], guests[1], newcomer, guests[2], guests[3]]:  # in the order of their turns
        guest.leave()
    assert admitted == ["a", "a", "b", "a"]


def test_queue_that_does_not_move_refuses_after_its_timeout() -> None:
    queue, admitted = FairQueue(1, timeout=0.01), list[str]()
    holder = arrive(queue, "a", admitted)[0]
    with pytest.raises(HashingFull), queue.turn("b"):
        pass
    assert queue.waiting == 0
    holder.leave()
    with queue.turn("b"):  # nothing of the refused one remains
        pass


def test_at_once_is_never_exceeded() -> None:
    queue, inside, most = FairQueue(2, max_waiting=100), [0], [0]
    lock = threading.Lock()

    def work() -> None:
        for _ in range(50):
            with queue.turn("a"):
                with lock:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                with lock:
                    inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert most[0] <= 2
    assert queue.waiting == 0


def test_hash_with_old_parameters_verifies_and_is_replaced(settings: Settings) -> None:
    settings.PASSWORD_HASHERS = [HASHER]
    replaced: list[str] = []
    assert check_password("correct horse battery staple", OLD, replaced.append)
    assert replaced == ["correct horse battery staple"]
    new = Argon2PasswordHasher().encode("x", "0123456789abcdefghijkl")  # 22 characters: Django replaces hashes with shorter salts
    assert "$m=19456,t=2,p=1$" in new
    assert not identify_hasher(new).must_update(new)
