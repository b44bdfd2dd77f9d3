"""Errors about egress requests. `tenants.errors` has the shared ones."""

from tenants.errors import Conflict, Refused


class WrongState(Conflict):
    default_code = "wrong_state"

    def __init__(self, status: str) -> None:
        super().__init__(f"This is not possible while the request is {status.replace('_', ' ')}.")


class RequestAlreadyOpen(Conflict):
    default_code = "request_open"

    def __init__(self, known: str) -> None:
        """`known` is the id of the open request. It is empty if the user cannot see that request."""
        which = f"the request {known}" if known else "another request"
        super().__init__(f"A collection can have one open egress request at a time. Wait until {which} has ended.")


class StaleDecision(Conflict):
    default_code = "moved_on"

    def __init__(self, round_number: int, stage: int) -> None:
        super().__init__(f"The request is now in round {round_number} at stage {stage}. Read it again before you decide.")


class PolicyChanged(Conflict):
    default_code = "policy_changed"

    def __init__(self, version: int) -> None:
        super().__init__(f"The policy now has version {version}. Read it again before you change it.")


class FilesMissing(Conflict):
    default_detail = "Some of these files are missing from the storage. Ask an operator to restore them, then submit the request."
    default_code = "files_missing"


class NotYourStage(Conflict):
    default_code = "not_your_stage"

    def __init__(self, role: str) -> None:
        super().__init__(f"The next decision requires the role {role}.")


class AlreadyDecided(Conflict):
    default_detail = "You have already decided in this round. Another reviewer must decide at this stage."
    default_code = "already_decided"


class OwnRequest(Refused):
    default_detail = "You cannot review your own request."
    default_code = "own_request"


class OwnContribution(Refused):
    default_detail = "You cannot decide on this request, because you wrote one of its files."
    default_code = "own_contribution"


class NotAReviewer(Refused):
    default_detail = "Your roles do not allow you to review this request."
    default_code = "not_a_reviewer"


class PersonOnly(Refused):
    default_detail = "This requires a person who has signed in. API keys and service accounts cannot do it."
    default_code = "people_only"


class DownloadsUsed(Conflict):
    default_detail = "The package has reached its approved number of downloads. Ask a reviewer of the last stage to extend it."
    default_code = "downloads_used"


class PackageGone(Conflict):
    default_detail = "The package is no longer available. Submit a new request if you need the files."
    default_code = "package_gone"
