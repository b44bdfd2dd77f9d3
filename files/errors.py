"""Errors about collections, files and their content. See tenants.errors for the shared errors."""

from rest_framework import status
from rest_framework.exceptions import APIException

from tenants.errors import Conflict, NotFound, Unavailable


class NameTaken(Conflict):
    default_detail = (
        "Choose another name: a file with this name exists. Names that differ only in case or Unicode form are the same."
    )
    default_code = "name_taken"


class CollectionNameTaken(Conflict):
    default_detail = "The tenant has a collection with this name. Choose another name."
    default_code = "name_taken"


class NotOpen(Conflict):
    default_detail = "The collection is deleted or is being purged. Restore it if you can, or use another collection."
    default_code = "collection_not_open"


class Held(Conflict):
    default_detail = "This cannot be changed or deleted while it is under a hold."
    default_code = "held"


class NotALegalHold(Conflict):
    default_detail = "This hold belongs to an egress request. It is lifted automatically when the request ends."
    default_code = "hold_of_egress"


class NotDeleted(Conflict):
    default_detail = "The collection is not deleted, so it cannot be restored."
    default_code = "collection_not_deleted"


class QuotaExceeded(Conflict):
    default_detail = "This exceeds the tenant's quota. Delete files, or ask an operator to raise the quota."
    default_code = "over_quota"


class UploadLost(Conflict):
    default_detail = "The upload was cancelled because it had stalled for too long. Send the file again."
    default_code = "upload_lost"


class PreconditionRequired(APIException):
    """See RFC 6585, section 3."""

    status_code = status.HTTP_428_PRECONDITION_REQUIRED
    default_detail = "A file with this name exists. Send If-Match with its ETag to replace it."
    default_code = "precondition_required"


class PreconditionFailed(APIException):
    """See RFC 9110, section 15.5.13."""

    status_code = status.HTTP_412_PRECONDITION_FAILED
    default_detail = "The file does not match the conditions of the request: it was changed, replaced or deleted. Load it again."
    default_code = "precondition_failed"


class RangeNotSatisfiable(APIException):
    """See RFC 9110, section 15.5.17."""

    status_code = status.HTTP_416_REQUESTED_RANGE_NOT_SATISFIABLE
    default_detail = "The requested range is outside the file. Content-Range has the length of the file."
    default_code = "range_not_satisfiable"

    def __init__(self, *, length: int) -> None:
        super().__init__()
        self.headers = {"Content-Range": f"bytes */{length}"}


class TooLarge(APIException):
    status_code = status.HTTP_413_REQUEST_ENTITY_TOO_LARGE
    default_detail = "The file is larger than this server accepts."
    default_code = "too_large"


class FormTooLarge(TooLarge):
    """The whole form is too large. TooLarge is about one file."""

    default_detail = "The form is larger than this server accepts."
    default_code = "form_too_large"


class BadBody(APIException):
    """The request body does not match its headers, or is incomplete."""

    status_code = status.HTTP_400_BAD_REQUEST
    default_detail = "The request body is shorter than its Content-Length, or its chunks are malformed. Send it again."
    default_code = "bad_body"


class BodyTimeout(APIException):
    status_code = status.HTTP_408_REQUEST_TIMEOUT
    default_detail = "The server received no more data and stopped waiting for the request body. Send it again."
    default_code = "body_timeout"


class UnsupportedBody(APIException):
    status_code = status.HTTP_415_UNSUPPORTED_MEDIA_TYPE
    default_detail = "The server cannot read a request body in this format."
    default_code = "unsupported_body"


class DigestMismatch(APIException):
    status_code = status.HTTP_400_BAD_REQUEST
    default_detail = "The content does not match the digest in the request. Nothing was saved. Send it again."
    default_code = "digest_mismatch"


class ObjectMissing(APIException):
    """The row exists, but the store does not have its object."""

    status_code = status.HTTP_502_BAD_GATEWAY
    default_detail = "The storage does not have the content of this file. Contact the operator."
    default_code = "object_missing"


class ObjectCorrupt(APIException):
    """The store did not return the bytes that were written."""

    status_code = status.HTTP_502_BAD_GATEWAY
    default_detail = "The stored content was altered or damaged. Contact the operator."
    default_code = "object_corrupt"


class TransfersFull(Unavailable):
    default_detail = "This server has reached its limit of simultaneous transfers. Try again later."
    default_code = "transfers_full"


class LinkInvalid(NotFound):
    """The link is used, expired, revoked or unknown. The response does not reveal which."""
