"""Which requests a view accepts at all. `access` and the services check the rights on individual objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from rest_framework.permissions import SAFE_METHODS, BasePermission
from rest_framework.request import Request

from tenants.errors import Refused
from tenants.models import Scope, User


if TYPE_CHECKING:
    from rest_framework.views import APIView  # imports the default permission, and with it this module


# Values of `scopes` on a view.
# No API key: a stolen key must not be able to create another key, or to revoke its replacement.
PEOPLE_ONLY: Final[dict[str, Scope | None]] = dict.fromkeys(("GET", "POST", "PUT", "PATCH", "DELETE"))
# The members and settings of a tenant need this scope, for reading too.
ADMINISTER: Final[dict[str, Scope | None]] = dict.fromkeys(PEOPLE_ONLY, Scope.ADMINISTER)


class InsufficientScope(Refused):
    default_code = "insufficient_scope"

    def __init__(self, scope: Scope) -> None:
        super().__init__(f"This operation needs an API key with the scope {scope}.")
        self.headers = {"WWW-Authenticate": f'Bearer realm="strongroom", error="insufficient_scope", scope="{scope}"'}


class PeopleOnly(Refused):
    default_detail = "This operation does not accept API keys. Sign in with username and password."
    default_code = "people_only"


class Authenticated(BasePermission):
    """Accepts users with a token, and API keys whose scopes cover the operation (RFC 6750, 3.1)."""

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
    """Returns the user who sent the request to a view that `Authenticated` protects."""
    return cast(User, request.user)


def scope_of(view: APIView | type[APIView], method: str) -> Scope | None:
    """Returns the scope that an API key needs for this method of the view, or None if the method accepts no API key.

    By default, safe methods need `read` and all other methods `write`. `scopes` of a view overrides this by method.
    """
    default = Scope.READ if method in SAFE_METHODS else Scope.WRITE
    scopes: dict[str, Scope | None] = getattr(view, "scopes", {})
    return scopes.get("GET" if method == "HEAD" else method, default)
