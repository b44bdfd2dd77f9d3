"""Who a view lets in at all. What they may do to a thing is asked later, of `access` and by the service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from rest_framework.permissions import SAFE_METHODS, BasePermission
from rest_framework.request import Request

from tenants.errors import Refused
from tenants.models import Scope, User


if TYPE_CHECKING:
    from rest_framework.views import APIView  # which imports the default permission, and so this module


# `scopes = PEOPLE_ONLY` on a view: a stolen key must neither mint another nor end the one that is to replace it.
PEOPLE_ONLY: Final[dict[str, Scope | None]] = dict.fromkeys(("GET", "POST", "PUT", "PATCH", "DELETE"))
# For whatever is about the tenant's people and settings, reading included
ADMINISTER: Final[dict[str, Scope | None]] = dict.fromkeys(PEOPLE_ONLY, Scope.ADMINISTER)


class InsufficientScope(Refused):
    default_code = "insufficient_scope"

    def __init__(self, scope: Scope) -> None:
        super().__init__(f"This API key lacks the scope {scope}.")
        self.headers = {"WWW-Authenticate": f'Bearer realm="strongroom", error="insufficient_scope", scope="{scope}"'}


class PeopleOnly(Refused):
    default_detail = "No API key opens this: sign in."
    default_code = "people_only"


class Authenticated(BasePermission):
    """People with a token of their own; an API key, where its scopes cover what the view does (RFC 6750, 3.1)."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        if not isinstance(request.user, User):
            return False
        if key := request.user.key:
            scope = scope_of(view, request.method or "")
            if scope is None:
                raise PeopleOnly
            if scope not in key.scopes:
                raise InsufficientScope(scope)
        return True


def user_of(request: Request) -> User:
    """Who asks, in a view that `Authenticated` guards."""
    return cast(User, request.user)


def scope_of(view: APIView | type[APIView], method: str) -> Scope | None:
    """What a key needs for this method of the view; None where none is let in.

    A view names in `scopes` what differs from the rule: reading is `read`, and everything else is `write`.
    """
    default = Scope.READ if method in SAFE_METHODS else Scope.WRITE
    scopes: dict[str, Scope | None] = getattr(view, "scopes", {})
    return scopes.get("GET" if method == "HEAD" else method, default)
