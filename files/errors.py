"""Refusals about collections, files and their bytes. See tenants.errors for the shared ones."""

from rest_framework import status
from rest_framework.exceptions import APIException

from tenants.errors import Conflict, NotFound, Unavailable


class NameTaken(Conflict):
    default_detail = "A file of this name exists. Names that differ only in case or Unicode form are the same name."
    default_code = "name_taken"


class CollectionNameTaken(Conflict):
    default_detail = "The tenant has a collection of this name."
    default_code = "name_taken"


class NotOpen(Conflict):
    default_detail = "The collection is not open."
    default_code = "collection_not_open"


class Held(Conflict):
    default_detail = "A hold keeps this as it is."
    default_code = "held"


class NotALegalHold(Conflict):
    default_detail = "This hold belongs to an egress request, and ends with it."
    default_code = "hold_of_egress"


class NotDeleted(Conflict):
    default_detail = "The collection is not deleted."
    default_code = "collection_not_deleted"


class QuotaExceeded(Conflict):
    default_detail = "The tenant's quota does not hold this."
    default_code = "over_quota"


class UploadLost(Conflict):
    default_detail = "The upload was given up meanwhile: it had stalled for too long."
    default_code = "upload_lost"


class PreconditionRequired(APIException):
    """RFC 6585, 3."""

    status_code = status.HTTP_428_PRECONDITION_REQUIRED
    default_detail = "A file of this name exists. Send If-Match with its ETag to replace it."
    default_code = "precondition_required"


class PreconditionFailed(APIException):
    """RFC 9110, 15.5.13."""

    status_code = status.HTTP_412_PRECONDITION_FAILED
    default_detail = "The file is not in the state that the request's conditions name."
    default_code = "precondition_failed"


class RangeNotSatisfiable(APIException):
    """RFC 9110, 15.5.17."""

    status_code = status.HTTP_416_REQUESTED_RANGE_NOT_SATISFIABLE
    default_detail = "The range lies outside the file."
    default_code = "range_not_satisfiable"

    def __init__(self, *, length: int) -> None:
        super().__init__()
        self.headers = {"Content-Range": f"bytes */{length}"}


class TooLarge(APIException):
    status_code = status.HTTP_413_REQUEST_ENTITY_TOO_LARGE
    default_detail = "The file is larger than this server accepts."
    default_code = "too_large"


class FormTooLarge(TooLarge):
    """All of the form together, where TooLarge is one file of it."""

    default_detail = "The form is larger than this server accepts."
    default_code = "form_too_large"


class BadBody(APIException):
    """The request body is not what its headers say, or it never arrived in full."""

    status_code = status.HTTP_400_BAD_REQUEST
    default_detail = "The body ended before its announced length."
    default_code = "bad_body"


class BodyTimeout(APIException):
    status_code = status.HTTP_408_REQUEST_TIMEOUT
    default_detail = "The body stopped arriving."
    default_code = "body_timeout"


class UnsupportedBody(APIException):
    status_code = status.HTTP_415_UNSUPPORTED_MEDIA_TYPE
    default_detail = "This body cannot be read."
    default_code = "unsupported_body"


class DigestMismatch(APIException):
    status_code = status.HTTP_400_BAD_REQUEST
    default_detail = "The bytes do not have the digest that the request announced. Nothing was kept."
    default_code = "digest_mismatch"


class ObjectMissing(APIException):
    """The row stands and the store does not have its object."""

    status_code = status.HTTP_502_BAD_GATEWAY
    default_detail = "The storage has lost this file's object. The operator has to look into it."
    default_code = "object_missing"


class ObjectCorrupt(APIException):
    """The store returned something else than what was written."""

    status_code = status.HTTP_502_BAD_GATEWAY
    default_detail = "The stored object fails authentication. The operator has to look into it."
    default_code = "object_corrupt"


class TransfersFull(Unavailable):
    default_detail = "This server carries as many transfers as it can."
    default_code = "transfers_full"


class LinkInvalid(NotFound):
    """Used, expired, revoked or never minted: nobody can tell."""
