"""Bearer tokens: a JWT for access, and one for refresh that works once. An API key comes in the same header.

A token carries the person's `token_version`; counting that up ends every token of theirs at once. A refresh token is known by
its `jti` in the outstanding table (never by its text), and lands on the blacklist when it is used.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Final, TypedDict, TypeVar

from django.db import transaction
from django.db.models import F, QuerySet
from django.utils import timezone
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request
from rest_framework_simplejwt.exceptions import TokenError
from rest_framework_simplejwt.token_blacklist.models import BlacklistedToken, OutstandingToken
from rest_framework_simplejwt.tokens import AccessToken, Token
from rest_framework_simplejwt.tokens import RefreshToken as SimpleRefreshToken

from tenants import audit, limits, request_context
from tenants.auth import api_keys
from tenants.models import ApiKey, User
from tenants.work.deadlocks import retry_on_deadlock


CHALLENGE: Final = 'Bearer realm="strongroom"'
MAX_TOKEN_LENGTH: Final = 2048
END: Final = "session_end"  # claim: the moment (Unix time) that no refreshing goes beyond

AnyToken = TypeVar("AnyToken", bound=Token)


class InvalidToken(AuthenticationFailed):
    """Forged, expired, revoked, used up, of another kind, or of somebody who is gone: the caller learns no more than that."""

    default_detail = "The token is not valid."
    default_code = "invalid_token"


class Pair(TypedDict):
    access: str
    refresh: str


class RefreshToken(Token):
    """Without simplejwt's own blacklist look-up: that a token was used before is told apart from being invalid, under a lock."""

    token_type = SimpleRefreshToken.token_type
    lifetime = SimpleRefreshToken.lifetime


class BearerAuthentication(BaseAuthentication):
    def authenticate(self, request: Request) -> tuple[User, Token | ApiKey] | None:
        """The person and the token or key of the Authorization header; None without one.

        Raises: InvalidToken, TooManyRequests.
        """
        try:
            return self._authenticate(request)
        except InvalidToken:
            limits.BAD_TOKENS.take(request_context.network(), now=timezone.now())
            raise

    def _authenticate(self, request: Request) -> tuple[User, Token | ApiKey] | None:
        scheme, _, raw = request.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer":
            return None
        if raw.startswith(api_keys.MARK):  # no JWT does: it begins with a brace in base64
            key = api_keys.authenticate(raw, now=timezone.now())
            if key is None:
                raise InvalidToken
            return key.owner, key
        token = _read(AccessToken, raw)
        return _holder(token, User.objects.all()), token

    def authenticate_header(self, request: Request) -> str:
        return CHALLENGE


def mint(user: User, lifetime: timedelta | None = None) -> Pair:
    """A new session. With `lifetime` both tokens live that long, and refreshing does not prolong it.

    The tokens carry the `token_version` of the instance at hand: what was revoked since it was read stays revoked.
    """
    refresh = RefreshToken()
    access = AccessToken()
    if lifetime is not None:
        for token in (refresh, access):
            token.set_exp(lifetime=lifetime)
        refresh[END] = refresh["exp"]
    return _sign(user, access=access, refresh=refresh)


@retry_on_deadlock
def refresh(raw: str, *, now: datetime) -> Pair:
    """A new pair for a refresh token that was never used. One that was used is in two hands: every token of the person ends."""
    used = _read(RefreshToken, raw)
    with transaction.atomic():
        # The lock on the person decides between two requests with the same token: the second finds it on the blacklist.
        user = _holder(used, User.objects.select_for_update())
        if is_first := _use_up(used, user):
            pair = _sign(user, access=_until(used, AccessToken()), refresh=_until(used, RefreshToken()))
        else:
            revoke_all(user)
            audit.record("session.reuse", by=None, tenant=None, target=user, now=now)
    if not is_first:
        raise InvalidToken
    return pair


@retry_on_deadlock
def revoke(raw: str, *, now: datetime) -> None:
    """Ends the session of a refresh token. One that opens nothing any more is as dead as it was asked to be (RFC 7009, 2.2)."""
    with transaction.atomic():
        try:
            token = _read(RefreshToken, raw)
            user = _holder(token, User.objects.select_for_update())
        except InvalidToken:
            return
        if _use_up(token, user):
            audit.record("session.close", by=user, tenant=None, target=user, now=now)


def revoke_all(user: User) -> None:
    """Ends every token of the person, in the caller's transaction."""
    User.objects.filter(pk=user.pk).update(token_version=F("token_version") + 1)
    user.refresh_from_db(fields=["token_version"])


def flush_expired(*, now: datetime) -> int:
    """Forgets refresh tokens that have expired: their signature no longer opens anything. Returns how many."""
    BlacklistedToken.objects.filter(token__expires_at__lt=now).delete()
    deleted, _ = OutstandingToken.objects.filter(expires_at__lt=now).delete()
    return deleted


def _sign(user: User, *, access: Token, refresh: Token) -> Pair:
    for token in (access, refresh):
        token["user_id"] = str(user.pk)
        token["token_version"] = user.token_version
    OutstandingToken.objects.create(
        user=user,
        jti=refresh["jti"],
        token="",  # known by its id; its text would be a working token for whoever reads the database
        created_at=refresh.current_time,
        expires_at=datetime.fromtimestamp(refresh["exp"], tz=UTC),
    )
    return {"access": str(access), "refresh": str(refresh)}


def _until(used: Token, token: Token) -> Token:
    """The token, not outliving the end that its session was given."""
    if end := used.get(END):
        token[END] = end
        token["exp"] = min(token["exp"], end)
    return token


def _read(kind: type[AnyToken], raw: str) -> AnyToken:
    if len(raw) > MAX_TOKEN_LENGTH:
        raise InvalidToken
    try:
        return kind(raw)  # type: ignore[arg-type]  # simplejwt's hint says Token; it is the encoded text
    except (TokenError, ValueError, TypeError, OverflowError, RecursionError):
        # What a claim or a header of a strange type makes the libraries raise is no TokenError.
        raise InvalidToken from None


def _holder(token: Token, users: QuerySet[User]) -> User:
    user_id, version = token.get("user_id"), token.get("token_version")
    if not (isinstance(user_id, str) and re.fullmatch("[0-9]{1,18}", user_id) and type(version) is int):
        raise InvalidToken
    user = users.filter(pk=user_id, is_active=True, token_version=version).first()
    if user is None:
        raise InvalidToken
    return user


def _use_up(token: Token, user: User) -> bool:
    """Whether this was the token's first use; it has no second. The caller holds the lock on the person."""
    outstanding = OutstandingToken.objects.filter(user=user, jti=token["jti"]).first()
    if outstanding is None:
        raise InvalidToken
    _, is_first = BlacklistedToken.objects.get_or_create(token=outstanding)
    return is_first
