"""Refusals that every app shares. Each is an APIException, so that DRF's own handler rolls back; `config.problems` renders them.

`default_code` is the machine-readable `code` of the problem document (RFC 9457).
"""

from typing import Any

from rest_framework import status
from rest_framework.exceptions import APIException, ValidationError


class Refused(APIException):
    """You may know of it, and may not do this to it."""

    status_code = status.HTTP_403_FORBIDDEN
    default_detail = "Your role does not allow this."
    default_code = "refused"


class NotFound(APIException):
    """Not yours or not there: the two are the same answer."""

    status_code = status.HTTP_404_NOT_FOUND
    default_detail = "Not found."
    default_code = "not_found"


class Conflict(APIException):
    """Right thing, wrong moment."""

    status_code = status.HTTP_409_CONFLICT
    default_detail = "The current state does not allow this."
    default_code = "conflict"


class Invalid(ValidationError):
    """One field of the request is wrong."""

    def __init__(self, field: str, problem: str, *, code: str = "invalid") -> None:
        super().__init__({field: [problem]}, code=code)


class BadToken(Invalid):
    """From a mail: forged, expired, used, or of somebody who is gone. The caller learns no more than that."""

    def __init__(self) -> None:
        super().__init__("token", "The token is not valid, or not any more.", code="bad_token")


class LastAdmin(Conflict):
    default_detail = "A tenant keeps at least one active admin: make somebody else one first."
    default_code = "last_admin"


class AlreadyMember(Conflict):
    default_detail = "They are a member already."
    default_code = "already_member"


class TooManyRequests(APIException):
    """RFC 6585, 4."""

    status_code = status.HTTP_429_TOO_MANY_REQUESTS
    default_detail = "Too many requests. Wait for the seconds in Retry-After, then try again."
    default_code = "too_many_requests"

    def __init__(self, *, retry_after: int) -> None:
        super().__init__()
        self.wait = retry_after  # seconds; DRF's handler sends it as Retry-After


class TooManyAttempts(TooManyRequests):
    default_detail = "Too many failed attempts to sign in. Wait for the seconds in Retry-After, then try again."
    default_code = "too_many_attempts"


class Unavailable(APIException):
    """Something that this server depends on does not answer, or it is full. Trying again later may work."""

    status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    default_detail = "The service cannot do this at the moment."
    default_code = "unavailable"

    def __init__(self, detail: Any = None, *, code: str | None = None, retry_after: int = 5) -> None:
        super().__init__(detail, code)
        self.wait = retry_after


class HashingFull(Unavailable):
    default_detail = "Too many people are signing in at this moment. Try again in a few seconds."
    default_code = "sign_in_busy"
