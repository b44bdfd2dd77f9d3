"""API clients for the users of a world. They are created lazily, because a world outlives the access tokens of its users."""

from collections.abc import Mapping

from rest_framework.test import APIClient

from tenants.auth import tokens
from tenants.models import User


class Clients(dict[str, APIClient]):
    """Maps a name to its client, which is created at the first access. A name whose user is None gets an anonymous client."""

    def __init__(self, people: Mapping[str, User | None], api_keys: dict[str, str] | None = None) -> None:
        super().__init__()
        self._people, self._api_keys = people, api_keys or {}
        self.pairs: dict[str, tokens.Pair] = {}

    def __missing__(self, name: str) -> APIClient:
        client = APIClient()
        bearer = self._api_keys.get(name)
        if bearer is None and self._people[name] is not None:
            bearer = self.pair(name)["access"]
        if bearer is not None:
            client.credentials(HTTP_AUTHORIZATION=f"Bearer {bearer}")
        self[name] = client
        return client

    def pair(self, name: str) -> tokens.Pair:
        """Returns the access token and the refresh token of the user's client."""
        user = self._people[name]
        assert user is not None
        if name not in self.pairs:
            self.pairs[name] = tokens.mint(user)
        return self.pairs[name]
