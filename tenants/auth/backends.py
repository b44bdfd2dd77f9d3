"""Sign-in with username and password, for the API, the admin site and the change of a password."""

from typing import Any

from django.contrib.auth.backends import ModelBackend
from django.http import HttpRequest
from django.utils import timezone

from tenants import request_context
from tenants.auth import sign_in_limits
from tenants.errors import HashingFull
from tenants.models import User


class LimitedBackend(ModelBackend):
    def authenticate(
        self, request: HttpRequest | None, username: str | None = None, password: str | None = None, **kwargs: Any
    ) -> User | None:
        """Returns the active user with this username and password, or None.

        Raises: TooManyAttempts, HashingFull.
        """
        if username is None or password is None:
            return None
        attempt = sign_in_limits.Attempt(username, request_context.network(), now=timezone.now())
        try:
            user = super().authenticate(request, username=username, password=password, **kwargs)
        except HashingFull:
            attempt.cancel()
            raise
        if not isinstance(user, User):
            return None
        attempt.succeed(user)
        return user
