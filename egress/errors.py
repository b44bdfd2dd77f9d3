"""Refusals about egress requests. See tenants.errors for the shared ones."""

from tenants.errors import Conflict, Refused


class WrongState(Conflict):
    default_code = "wrong_state"

    def __init__(self, status: str) -> None:
        super().__init__(f"The request is {status.replace('_', ' ')}: this is not the moment for it.")


class RequestAlreadyOpen(Conflict):
    default_code = "request_open"

    def __init__(self, known: str) -> None:
        """`known` is the id of that request, or empty if it is not theirs to see."""
        which = f"the request {known}" if known else "an egress request"
        super().__init__(f"A collection has one open request at a time, and {which} is open already.")


class StaleDecision(Conflict):
    default_code = "moved_on"

    def __init__(self, round_number: int, stage: int) -> None:
        super().__init__(f"The request is in round {round_number} at stage {stage} by now: look at it again.")


class PolicyChanged(Conflict):
    default_code = "policy_changed"

    def __init__(self, version: int) -> None:
        super().__init__(f"The policy is at version {version} by now: look at it again.")


class FilesMissing(Conflict):
    default_detail = "The storage has lost some of these files. An operator has to look before they can be asked for."
    default_code = "files_missing"


class NotYourStage(Conflict):
    default_code = "not_your_stage"

    def __init__(self, role: str) -> None:
        super().__init__(f"It is {role} that decides now.")


class AlreadyDecided(Conflict):
    default_detail = "You have decided in this round: each stage takes somebody else."
    default_code = "already_decided"


class OwnRequest(Refused):
    default_detail = "Nobody decides on their own request."
    default_code = "own_request"


class OwnContribution(Refused):
    default_detail = "Nobody decides on files that they wrote."
    default_code = "own_contribution"


class NotAReviewer(Refused):
    default_detail = "Your roles have no say in this request."
    default_code = "not_a_reviewer"


class PersonOnly(Refused):
    default_detail = "This takes a person who signed in: no API key, and no service account."
    default_code = "people_only"


class DownloadsUsed(Conflict):
    default_detail = "The package was downloaded as often as its approval allows."
    default_code = "downloads_used"


class PackageGone(Conflict):
    default_detail = "The package is not to be had any more."
    default_code = "package_gone"
