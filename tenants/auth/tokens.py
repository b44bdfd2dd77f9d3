"""Bearer tokens: an access JWT, and a refresh JWT that works once. API keys use the same header.

A token contains the user's `token_version`. Incrementing it revokes all tokens of the user. The table of outstanding tokens
identifies a refresh token by its `jti` and does not hold its text. A used token is added to the blacklist.
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
SESSION_END: Final = "session_end"  # claim: Unix time after which no token of the session is valid, refreshed or not

AnyToken = TypeVar("AnyToken", bound=Token)


class InvalidToken(AuthenticationFailed):
    """The token is forged, expired, revoked, used or of another kind, or its user is deactivated. The response hides which."""

    default_detail = "The token is not valid. Sign in again, or use another API key."
    default_code = "invalid_token"


class Pair(TypedDict):
    access: str
    refresh: str


class RefreshToken(Token):
    """Omits simplejwt's check of the blacklist. `refresh` checks it under a lock, to tell a reused token from an invalid one."""

    token_type = SimpleRefreshToken.token_type
    lifetime = SimpleRefreshToken.lifetime


class BearerAuthentication(BaseAuthentication):
    def authenticate(self, request: Request) -> tuple[User, Token | ApiKey] | None:
        """Returns the user and the token or API key of the Authorization header. Returns None if it has no Bearer token.

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
        if raw.startswith(api_keys.KEY_PREFIX):  # no JWT starts with it: a JWT starts with a brace in Base64
            key = api_keys.authenticate(raw, now=timezone.now())
            if key is None:
                raise InvalidToken
            return key.owner, key
        token = _decode(AccessToken, raw)
        return _user_of(token, User.objects.all()), token

    def authenticate_header(self, request: Request) -> str:
        return CHALLENGE


def mint(user: User, lifetime: timedelta | None = None) -> Pair:
    """Starts a session. With `lifetime`, both tokens expire after that time, and refreshing does not extend it.

    The tokens contain the `token_version` of the given instance. If the tokens of the user were revoked after it was read, the
    new ones are invalid too.
    """
    refresh = RefreshToken()
    access = AccessToken()
    if lifetime is not None:
        for token in (refresh, access):
            token.set_exp(lifetime=lifetime)
        refresh[SESSION_END] = refresh["exp"]
    return _sign(user, access=access, refresh=refresh)


@retry_on_deadlock
def refresh(raw: str, *, now: datetime) -> Pair:
    """Exchanges an unused refresh token for a new pair.

    A token that is used twice has probably been stolen, so all tokens of the user are revoked (RFC 9700, 4.14.2).

    Raises: InvalidToken.
    """
    used = _decode(RefreshToken, raw)
    with transaction.atomic():
        # The other contender uses the same token. The lock on the user makes the second request find it on the blacklist.
        user = _user_of(used, User.objects.select_for_update())
        if is_first := _mark_used(used, user):
            pair = _sign(user, access=_limit_to_session(used, AccessToken()), refresh=_limit_to_session(used, RefreshToken()))
        else:
            revoke_all(user)
            audit.record("session.reuse", by=None, tenant=None, target=user, now=now)
    if not is_first:
        raise InvalidToken
    return pair


@retry_on_deadlock
def revoke(raw: str, *, now: datetime) -> None:
    """Revokes a refresh token, which ends its session. A token that is expired or revoked causes no error (RFC 7009, 2.2).

    Raises: InvalidToken.
    """
    with transaction.atomic():
        try:
            token = _decode(RefreshToken, raw)
            user = _user_of(token, User.objects.select_for_update())
        except InvalidToken:
            return
        if _mark_used(token, user):
            audit.record("session.close", by=user, tenant=None, target=user, now=now)


def revoke_all(user: User) -> None:
    """Revokes all tokens of the user, in the caller's transaction."""
    User.objects.filter(pk=user.pk).update(token_version=F("token_version") + 1)
    user.refresh_from_db(fields=["token_version"])


def delete_expired(*, now: datetime) -> int:
    """Deletes the rows of expired refresh tokens. Returns the number of tokens."""
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
        token="",  # a reader of the database could use the text of the token
        created_at=refresh.current_time,
        expires_at=datetime.fromtimestamp(refresh["exp"], tz=UTC),
    )
    return {"access": str(access), "refresh": str(refresh)}


def _limit_to_session(used: Token, token: Token) -> Token:
    """Copies the end of the session from the used token, and limits the expiry of the new token to it."""
    if end := used.get(SESSION_END):
        token[SESSION_END] = end
        token["exp"] = min(token["exp"], end)
    return token


def _decode(kind: type[AnyToken], raw: str) -> AnyToken:
    if len(raw) > MAX_TOKEN_LENGTH:
        raise InvalidToken
    try:
        return kind(raw)  # type: ignore[arg-type]  # simplejwt's hint says Token; it is the encoded text
    except (TokenError, ValueError, TypeError, OverflowError, RecursionError):
        # A claim or a header of an unexpected type makes the libraries raise one of the other exceptions.
        raise InvalidToken from None


def _user_of(token: Token, users: QuerySet[User]) -> User:
    user_id, version = token.get("user_id"), token.get("token_version")
    if not (isinstance(user_id, str) and re.fullmatch("[0-9]{1,18}", user_id) and type(version) is int):
        raise InvalidToken
    user = users.filter(pk=user_id, is_active=True, token_version=version).first()
    if user is None:
        raise InvalidToken
    return user


def _mark_used(token: Token, user: User) -> bool:
    """Marks the token as used. Returns False if it was used before. The caller has locked the user."""
    outstanding = OutstandingToken.objects.filter(user=user, jti=token["jti"]).first()
    if outstanding is None:
        raise InvalidToken
    _, is_first = BlacklistedToken.objects.get_or_create(token=outstanding)
    return is_first
