"""Errors that all apps share. They subclass APIException, so that DRF's handler rolls back; `config.problems` renders them.

`default_code` is the machine-readable `code` of the problem document (RFC 9457).
"""

from typing import Any

from rest_framework import status
from rest_framework.exceptions import APIException, ValidationError


class Refused(APIException):
    """The user may see the object, but may not perform this operation on it."""

    status_code = status.HTTP_403_FORBIDDEN
    default_detail = "Your role does not allow this."
    default_code = "refused"


class NotFound(APIException):
    """The object does not exist, or the user may not see it. Both cases get the same response."""

    status_code = status.HTTP_404_NOT_FOUND
    default_detail = "Not found."
    default_code = "not_found"


class Conflict(APIException):
    """The operation is not possible in the current state of the object."""

    status_code = status.HTTP_409_CONFLICT
    default_detail = "The current state does not allow this."
    default_code = "conflict"


class Invalid(ValidationError):
    """The value of one field of the request is invalid."""

    def __init__(self, field: str, problem: str, *, code: str = "invalid") -> None:
        super().__init__({field: [problem]}, code=code)


class BadToken(Invalid):
    """A token from a mail is forged, expired or used, or its user is deactivated. The response does not say which."""

    def __init__(self) -> None:
        super().__init__("token", "The token is invalid or has expired. Ask for a new mail.", code="bad_token")


class LastAdmin(Conflict):
    default_detail = "This is the last active admin of the tenant. Make another member an admin first."
    default_code = "last_admin"


class AlreadyMember(Conflict):
    default_detail = "This user is already a member of the tenant."
    default_code = "already_member"


class TooManyRequests(APIException):
    """RFC 6585, 4."""

    status_code = status.HTTP_429_TOO_MANY_REQUESTS
    default_detail = "Too many requests."
    default_code = "too_many_requests"

    def __init__(self, *, retry_after: int) -> None:
        super().__init__(f"{self.default_detail} Try again in {retry_after} seconds.")
        self.wait = retry_after  # seconds; DRF's handler sends it as Retry-After


class TooManyAttempts(TooManyRequests):
    default_detail = "Too many failed sign-ins."
    default_code = "too_many_attempts"


class Unavailable(APIException):
    """A service that this server depends on does not respond, or has no free capacity. A later attempt can succeed."""

    status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    default_detail = "The server cannot perform this operation at the moment. Try again later."
    default_code = "unavailable"

    def __init__(self, detail: Any = None, *, code: str | None = None, retry_after: int = 5) -> None:
        super().__init__(detail, code)
        self.wait = retry_after


class HashingFull(Unavailable):
    default_detail = "Too many users are signing in at the moment. Try again in a few seconds."
    default_code = "sign_in_busy"
