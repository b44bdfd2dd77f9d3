from typing import Any, cast

from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from tenants import access, limits, request_context, services
from tenants.auth import passwords, tokens
from tenants.auth.permissions import PEOPLE_ONLY
from tenants.models import User
from tenants.serializers import (
    ChangePasswordInput,
    ConfirmResetInput,
    MeOutput,
    RefreshInput,
    ResetPasswordInput,
    TokenInput,
    TokenOutput,
)


class TokenView(APIView):
    """A view that needs no token. Limits the requests of each network."""

    authentication_classes = ()
    permission_classes = (AllowAny,)

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        limits.REQUESTS.take(request_context.network(), now=timezone.now())

    def get_authenticate_header(self, request: Request) -> str:
        return tokens.CHALLENGE  # without it, DRF replaces 401 by 403


class SignIn(TokenView):
    @extend_schema(operation_id="token_create", request=TokenInput, responses=TokenOutput, tags=["auth"])
    def post(self, request: Request) -> Response:
        """Exchanges a username and a password for an access token, which is valid for 5 minutes, and a refresh token.

        After several failures, the response is 429 with `Retry-After`, even if the password is correct.
        """
        serializer = TokenInput(data=request.data)
        serializer.is_valid(raise_exception=True)
        pair = services.sign_in(request=request._request, **serializer.validated_data, now=timezone.now())
        return Response(pair, headers={"Cache-Control": "no-store"})


class Refresh(TokenView):
    @extend_schema(operation_id="token_refresh", request=RefreshInput, responses=TokenOutput, tags=["auth"])
    def post(self, request: Request) -> Response:
        """Exchanges a refresh token for a new pair. A refresh token works once. Using it again ends all sessions of the user."""
        serializer = RefreshInput(data=request.data)
        serializer.is_valid(raise_exception=True)
        pair = tokens.refresh(serializer.validated_data["refresh"], now=timezone.now())
        return Response(pair, headers={"Cache-Control": "no-store"})


class Revoke(TokenView):
    @extend_schema(operation_id="token_revoke", request=RefreshInput, responses={204: None}, tags=["auth"])
    def post(self, request: Request) -> Response:
        """Signs out by revoking the refresh token. The access token expires within 5 minutes."""
        serializer = RefreshInput(data=request.data)
        serializer.is_valid(raise_exception=True)
        tokens.revoke(serializer.validated_data["refresh"], now=timezone.now())
        return Response(status=204)


class ChangePassword(APIView):
    scopes = PEOPLE_ONLY

    @extend_schema(operation_id="password_change", request=ChangePasswordInput, responses=TokenOutput, tags=["auth"])
    def post(self, request: Request) -> Response:
        """Changes your own password. All your sessions end, and the response contains the tokens of a new one.

        A wrong current password counts as a failed sign-in. After several failures, the response is 429 with `Retry-After`.
        """
        serializer = ChangePasswordInput(data=request.data)
        serializer.is_valid(raise_exception=True)
        user = cast(User, request.user)
        pair = passwords.change(request=request._request, user=user, **serializer.validated_data, now=timezone.now())
        return Response(pair, headers={"Cache-Control": "no-store"})


class ResetPassword(TokenView):
    @extend_schema(operation_id="password_reset", request=ResetPasswordInput, responses={202: None}, tags=["auth"])
    def post(self, request: Request) -> Response:
        """Sends a mail with a token that sets a new password once within an hour.

        The response does not show whether a user has this address.
        """
        serializer = ResetPasswordInput(data=request.data)
        serializer.is_valid(raise_exception=True)
        passwords.request_reset(email=serializer.validated_data["email"], now=timezone.now())
        return Response(status=202)


class ConfirmReset(TokenView):
    @extend_schema(operation_id="password_reset_confirm", request=ConfirmResetInput, responses={204: None}, tags=["auth"])
    def post(self, request: Request) -> Response:
        """Sets a new password with the token from the mail. All sessions of the user end."""
        serializer = ConfirmResetInput(data=request.data)
        serializer.is_valid(raise_exception=True)
        passwords.confirm_reset(**serializer.validated_data, now=timezone.now())
        return Response(status=204)


class Me(APIView):
    @extend_schema(operation_id="me", responses=MeOutput, tags=["auth"])
    def get(self, request: Request) -> Response:
        """Returns the current user, with their tenants and roles, and the API key of the request, if any."""
        user = cast(User, request.user)  # the default permission accepts no other type
        tenants = access.memberships_of(user).order_by("tenant__slug")
        me = {
            "username": user.username,
            "email": user.email,
            "is_superuser": user.is_superuser and user.key is None,
            "tenants": tenants,
            "key": user.key,
        }
        return Response(MeOutput(me).data)
