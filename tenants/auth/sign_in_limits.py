"""Limits on failed sign-ins: by account, by network, and by account on a known network.

A network is known if the user has signed in from it within 30 days. An attempt from a known network counts for the account on
that network only. So failures elsewhere do not lock the user out there, and another user of the same address needs more failures
to do so. Any other attempt counts for the account, which limits guesses of its password, and for the network, which limits tries
of one password on many accounts. Each attempt is counted before the password is checked, so that parallel attempts cannot exceed
a limit. A successful attempt is refunded.
"""

from datetime import datetime, timedelta
from typing import Final

from django.conf import settings

from tenants.errors import TooManyAttempts
from tenants.limits import Limit
from tenants.models import KnownNetwork, User


KNOWN_FOR: Final = timedelta(days=30)


def _limit(name: str, failures: int) -> Limit:
    return Limit(name, failures, settings.LOGIN_COOLOFF, refusal=TooManyAttempts)


ACCOUNT: Final = _limit("account", settings.LOGIN_FAILURE_LIMIT)
NETWORK: Final = _limit("network", 2 * settings.LOGIN_FAILURE_LIMIT)
KNOWN: Final = _limit("known network", 4 * settings.LOGIN_FAILURE_LIMIT)


class Attempt:
    """One attempt to sign in, counted as a failure until `succeed` is called."""

    def __init__(self, username: str, network: str, *, now: datetime) -> None:
        """Counts the attempt.

        Raises: TooManyAttempts.
        """
        account = username.casefold()
        is_known = KnownNetwork.objects.filter(
            user__username=username, network=network, signed_in_at__gt=now - KNOWN_FOR
        ).exists()
        self._network = network
        self._now = now
        self._taken: list[tuple[Limit, str]] = []
        wanted = [(KNOWN, f"{account} {network}")] if is_known else [(ACCOUNT, account), (NETWORK, network)]
        try:
            for limit, subject in wanted:
                limit.take(subject, now=now)
                self._taken.append((limit, subject))
        except TooManyAttempts:
            self.cancel()
            raise

    def succeed(self, user: User) -> None:
        """Restores the account's allowance, and records the network as known."""
        for limit, subject in self._taken:
            if limit is NETWORK:  # a reset would help an attacker who signs in to an account of their own in between
                limit.refund(subject)
            else:
                limit.reset(subject)
        KnownNetwork.objects.update_or_create(user=user, network=self._network, defaults={"signed_in_at": self._now})

    def cancel(self) -> None:
        """Refunds an attempt whose password was not checked."""
        for limit, subject in self._taken:
            limit.refund(subject)


def unlock(user: User) -> None:
    """Resets the limits of the account on all networks."""
    account = user.username.casefold()
    ACCOUNT.reset(account)
    KNOWN.reset(*(f"{account} {network}" for network in user.known_networks.values_list("network", flat=True)))


def delete_expired(*, now: datetime) -> int:
    """Deletes networks that are no longer known. Returns their number."""
    return KnownNetwork.objects.filter(signed_in_at__lt=now - KNOWN_FOR).delete()[0]
