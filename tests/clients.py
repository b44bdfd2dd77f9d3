"""Clients of the API for the people of a world, who stay when access tokens have long expired."""

from collections.abc import Mapping

from rest_framework.test import APIClient

from tenants.auth import tokens
from tenants.models import User


class Clients(dict[str, APIClient]):
    """By name, each made when it is first asked for. A name without a person is anonymous."""

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
        """The access token of the person's client, and its refresh token."""
        user = self._people[name]
        assert user is not None
        if name not in self.pairs:
            self.pairs[name] = tokens.mint(user)
        return self.pairs[name]
