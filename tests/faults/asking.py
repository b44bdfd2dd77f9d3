"""Requests to let files out, as the model knows them: who may do what, what becomes of them, and what is to be seen of it
(INV-10..INV-13).
"""

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from hypothesis.stateful import invariant

from egress.models import StagedFile
from egress.states import TRANSITIONS, State
from files.models import StoredFile
from tests import invariants
from tests.api import paths
from tests.faults.breaking import FUSE
from tests.faults.going_in import GoingIn
from tests.faults.world import (
    ADMINS,
    INSIDE,
    PEOPLE,
    PINNING,
    STAGES,
    Fault,
    Request,
    unzipped,
)


EXPIRY, WINDOW, RESUMABLE = timedelta(days=21), timedelta(days=7), timedelta(hours=1)
PATIENCE: Final = timedelta(minutes=5)  # after which whoever was broken off is taken for dead
MOST_ATTEMPTS: Final = 5
OPEN: Final = {*PINNING, "returned"}
STATUS_OF_COLLECTION: Final = dict.fromkeys(OPEN, "processing") | {
    "released": "processed", "closed": "processed", "revoked": "processed",
    "rejected": "pending", "withdrawn": "none", "expired": "none",
}  # fmt: skip
MOMENTS: Final = {  # of a request, for who may do it at all
    "read_items": {"in_review"},
    "decide": {"in_review"},
    "return": {"failed"},
    "resubmit": {"returned"},
    "withdraw": {"submitted", "in_review", "failed", "returned"},
    "fetch": {"released"},
    "download": {"released"},
    "extend": {"released"},
    "revoke": {"released"},
    "retry": {"failed"},
}
ACTIONS: Final = MOMENTS.keys() - {"fetch"}  # as the server names them


class Asking(GoingIn):
    def __init__(self) -> None:
        super().__init__()
        self.stalled_until = self.now - PATIENCE  # by when whoever was broken off last is taken for dead
        self.packages: dict[int, bytes] = {}
        self.details: dict[int, Any] = {}  # what `requests_seen` saw last
        self.viewers = itertools.cycle([*PEOPLE, "root", None])  # one of them looks after each step

    # --- Who may do what ---

    def sees(self, who: str | None, request: Request) -> int:
        """0, or the status that is the answer to whoever does not."""
        if who is None:
            return 401
        if who == "root":
            return 0
        is_concerned = who == request.requester or self.roles[who] in {"admin", *STAGES[request.tenant]}
        return 0 if PEOPLE[who] == request.tenant and is_concerned else 404

    def forbidden(self, who: str | None, request: Request, action: str) -> int:
        """0, or the status of the refusal: whoever it is not for is told so, whatever the moment."""
        stages, role = STAGES[request.tenant], self.roles.get(who or "", "")
        is_reviewer = role in stages and who != request.requester
        is_free = is_reviewer and all(who not in {file.creator, file.writer} for file in request.pinned)
        is_for = {
            "read_items": is_reviewer,
            "decide": is_free,
            "return": is_free,
            "extend": is_free and role == stages[-1],
            "revoke": role in {"admin", *stages} or who == "root",
            "retry": who == "root",
        }.get(action, who == request.requester)
        if refusal := self.sees(who, request):
            return refusal
        if not is_for:
            return 403
        if request.status not in MOMENTS[action]:
            return 409
        if action == "decide":
            return 409 if role != stages[request.stage] or who in request.decided.values() else 0
        if action == "return":
            return 403 if role != stages[-1] else 0
        if action in {"fetch", "download", "extend"}:
            is_over = request.available_until is None or request.available_until <= self.now
            return 409 if is_over or (action == "download" and request.download_count == request.max_downloads) else 0
        return 0

    # --- Asking ---

    def address(self, number: int, what: str = "") -> str:
        return f"{paths.REQUESTS}{self.seen['request', number]}/{what}"

    def refund(self, number: int, *after: Request, is_done: bool) -> None:
        """Which of these the request has become, or whether it is what it was: only a GET tells what was broken off."""
        candidates = [*after] if is_done else [self.requests.get(number), *after]
        if len(candidates) > 1:
            seen = self.requests_seen(new=number).get(number)
            candidates = [request for request in candidates if (request and request.shown) == seen]
        if candidates[0] is not None:
            self.requests = {**self.requests, number: candidates[0]}

    def move(
        self, who: str | None, number: int, what: str, expect: int, data: Mapping[str, Any], fault: Fault, **changes: Any
    ) -> None:
        """What somebody does to a request, which is answered with `expect` and then changes it so."""
        call = self.clients[who].post
        response = self.attempt(lambda: call(self.address(number, what), data), expect, fault=fault)
        if expect < 400:
            is_done = not FUSE.is_blown or (response is not None and response.status_code < 400)
            self.refund(number, replace(self.requests[number], **changes), is_done=is_done)

    # --- What goes on by itself ---

    def outcomes(self, request: Request, *, is_whole: bool, is_stalled: bool) -> list[Request]:
        """What may have become of it: one thing alone, unless somebody is or was broken off."""
        ended = self.ended(request)
        if is_whole and not is_stalled:
            return [self.worked(ended)]
        if is_whole:
            return [self.worked(ended), ended]
        after = [request, ended, self.worked(request), self.worked(ended)]
        if request.status == "approved":
            after[0] = replace(request, troubles=request.troubles + 1)
            if request.troubles >= MOST_ATTEMPTS:
                after.append(replace(request, status="failed", expires_at=self.now + EXPIRY))
        return after

    def ended(self, request: Request) -> Request:
        """If nobody went on with it in time, or its package had its time."""
        if request.status in OPEN and request.expires_at and request.expires_at <= self.now:
            if request.status == "approved":
                return replace(request, status="failed", expires_at=self.now + EXPIRY)
            return replace(request, status="expired", expires_at=None)
        if request.status == "released":
            is_over = request.available_until is not None and request.available_until <= self.now
            is_used = request.download_count == request.max_downloads
            is_quiet = request.touched_at is not None and request.touched_at <= self.now - RESUMABLE
            return replace(request, status="closed") if is_over or (is_used and is_quiet) else request
        return request

    def worked(self, request: Request) -> Request:
        """Copied, or packed, if everybody who approved may do so still (INV-10)."""
        until = self.now + EXPIRY
        if request.status == "submitted":
            return replace(request, status="in_review", expires_at=until)
        if request.status != "approved":
            return request
        stages = STAGES[request.tenant]
        principal = {stage: who for stage, who in request.decided.items() if self.roles[who] == stages[stage]}
        if lost := request.decided.keys() - principal.keys():
            return replace(request, status="in_review", stage=min(lost), decided=principal, expires_at=until)
        if self.roles[request.requester] not in INSIDE:
            return replace(request, status="failed", expires_at=until)
        return replace(request, status="released", expires_at=None, available_until=self.now + WINDOW)

    # --- What is to be seen of it ---

    def requests_seen(self, *, new: int = 0) -> dict[int, object]:
        """What the requesters are shown; `new` is the number of a request that was not seen before, if there is one."""
        numbers = {name: number for (kind, number), name in self.seen.items() if kind == "request"}
        self.details = {}
        for tenant, admin in ADMINS.items():
            for listed in self.get(admin, f"{paths.REQUESTS}?page_size=1000")["results"]:
                assert listed["tenant"] == tenant
                detail = self.get(listed["requester"], f"{paths.REQUESTS}{listed['id']}/")
                listed |= {name: detail[name] for name in ("allowed_actions", "links")}  # of two people
                assert listed.items() <= detail.items()
                number = numbers.get(listed["id"], new)
                assert number not in self.details
                self.details[number] = detail
        return {number: shown(detail) for number, detail in self.details.items()}

    @invariant()
    def agrees(self) -> None:
        super().agrees()
        unnamed = [number for number in self.requests if ("request", number) not in self.seen]
        assert self.requests_seen(new=next(iter(unnamed), 0)) == {number: each.shown for number, each in self.requests.items()}
        who = next(self.viewers)
        for number, request in self.requests.items():
            self.seen.setdefault(("request", number), self.details[number]["id"])
            self.check_history(request, [step["status"] for step in self.details[number]["timeline"]])
            self.check_view(who, number, request)
            self.check_package(number, request)
        for number, case in self.state.items():
            if not case.is_deleted:
                statuses = [request.status for request in self.requests.values() if request.case == number]
                status = STATUS_OF_COLLECTION[statuses[-1]] if statuses else "none"
                was_released = any(STATUS_OF_COLLECTION[each] == "processed" for each in statuses)
                found, _ = self.listed[case.tenant, case.title]
                assert found["egress_status"] == ("processed" if status == "none" and was_released else status)
                assert found["is_held"] == self.is_pinned(number)

    def check_history(self, request: Request, statuses: list[str]) -> None:
        """INV-12, INV-13."""
        assert (statuses[0], statuses[-1]) == ("submitted", request.status)
        assert all(State(after) in TRANSITIONS[State(before)] for before, after in itertools.pairwise(statuses))
        assert [status for status, _ in itertools.groupby(statuses)].count("released") <= 1  # however often it was extended

    def check_view(self, who: str | None, number: int, request: Request) -> None:
        """INV-01, and that everybody is told what they may do."""
        answer = self.clients[who].get(self.address(number))
        assert answer.status_code == (self.sees(who, request) or 200)
        if answer.status_code == 200:
            assert set(answer.json()["allowed_actions"]) == {name for name in ACTIONS if not self.forbidden(who, request, name)}

    def check_package(self, number: int, request: Request) -> None:
        """INV-11, INV-13: one, of what was pinned and decided on, and the same for ever; none before the release."""
        detail = self.details[number]
        stored = StoredFile.objects.select_related("collection__key").filter(collection__status="open")
        contents = [file.open().read() for file in stored.filter(collection__package_of=detail["id"])]
        if request.status == "released" and (request.available_until or self.now) > self.now:
            assert len(contents) == 1
        elif request.status not in {"released", "closed", "revoked"}:
            assert contents == []
        for content in contents:
            assert (hashlib.sha256(content).hexdigest(), len(content)) == (detail["package_sha256"], detail["package_length"])
            if number not in self.packages:
                members = unzipped(content)
                manifest, _ = json.loads(members.pop("manifest.json")), members.pop("manifest.json.sig")
                assert members == {file.filename: file.content for file in request.pinned}
                assert {file["name"]: (file["length"], file["sha256"]) for file in manifest["files"]} == request.shown["files"]
                assert {each["stage"] - 1: each["by"]["username"] for each in manifest["decisions"]} == request.decided
                bound = {each["content_sha256"] for each in (manifest, *manifest["decisions"])}
                assert bound == {detail["content_sha256"]}
            assert self.packages.setdefault(number, content) == content

    @invariant()
    def egress_holds(self) -> None:
        """INV-10..INV-13, and nothing in staging but the copies of those that are in review, or about to be packed."""
        staged = StagedFile.objects.filter(status=StagedFile.Status.STAGED).values_list("object_key", flat=True)
        due = StagedFile.objects.exclude(status=StagedFile.Status.WIPED).values_list("object_key", flat=True)
        found = {entry.key for alias, entry in invariants.entries() if alias == "staging"}
        assert set(staged) <= found <= set(due)


def shown(detail: Any) -> dict[str, object]:
    """As `Request.shown`."""
    touched = [moment(download["last_at"]) for download in detail["downloads"]]
    principal = [each for each in detail["decisions"] if each["round"] == detail["round"] and not each["voided_at"]]
    return {
        "status": detail["status"],
        "round": detail["round"],
        "awaited_role": detail["awaited_role"],
        "files": {item["filename"]: (item["length"], item["sha256"]) for item in detail["items"]},
        "decided": {each["stage"] - 1: each["by"] for each in principal},
        "expires_at": moment(detail["expires_at"]),
        "available_until": moment(detail["available_until"]),
        "max_downloads": detail["max_downloads"],
        "download_count": detail["download_count"],
        "touched_at": max([each for each in touched if each], default=None),
    }


def moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
