"""The model of egress requests: permissions, the effects of background jobs, and visibility (INV-10..INV-13)."""

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
from tests.faults.fault_injection import INJECTOR
from tests.faults.model.base import (
    ADMINS,
    PEOPLE,
    PINNING,
    STAGES,
    STORAGE_ROLES,
    Fault,
    Request,
    unzipped,
)
from tests.faults.model.file_rules import FileRules


EXPIRY, WINDOW, RESUMABLE = timedelta(days=21), timedelta(days=7), timedelta(hours=1)
LEASE_TIMEOUT: Final = timedelta(minutes=5)  # after which another worker takes over interrupted work
MAX_ATTEMPTS: Final = 5
OPEN: Final = {*PINNING, "returned"}
STATUS_OF_COLLECTION: Final = dict.fromkeys(OPEN, "processing") | {
    "released": "processed", "closed": "processed", "revoked": "processed",
    "rejected": "pending", "withdrawn": "none", "expired": "none",
}  # fmt: skip
ALLOWED_STATES: Final = {  # action -> states of the request in which a user with the right may perform it
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
ACTIONS: Final = ALLOWED_STATES.keys() - {"fetch"}  # the names that the API uses


class EgressChecks(FileRules):
    def __init__(self) -> None:
        super().__init__()
        self.stalled_until = self.now - LEASE_TIMEOUT  # end of the latest lease of an interrupted worker
        self.packages: dict[int, bytes] = {}
        self.details: dict[int, Any] = {}  # the latest result of `requests_seen`
        self.viewers = itertools.cycle([*PEOPLE, "root", None])  # one of them reads every request after each step

    # --- Permissions ---

    def visibility_refusal(self, who: str | None, request: Request) -> int:
        """Returns the status for a user who may not see the request, or 0."""
        if who is None:
            return 401
        if who == "root":
            return 0
        is_involved = who == request.requester or self.roles[who] in {"admin", *STAGES[request.tenant]}
        return 0 if PEOPLE[who] == request.tenant and is_involved else 404

    def action_refusal(self, who: str | None, request: Request, action: str) -> int:
        """Returns the status of the refusal, or 0. A missing right takes precedence over a wrong state."""
        stages, role = STAGES[request.tenant], self.roles.get(who or "", "")
        is_reviewer = role in stages and who != request.requester
        may_decide = is_reviewer and all(who not in {file.creator, file.writer} for file in request.pinned)
        has_right = {
            "read_items": is_reviewer,
            "decide": may_decide,
            "return": may_decide,
            "extend": may_decide and role == stages[-1],
            "revoke": role in {"admin", *stages} or who == "root",
            "retry": who == "root",
        }.get(action, who == request.requester)
        if refusal := self.visibility_refusal(who, request):
            return refusal
        if not has_right:
            return 403
        if request.status not in ALLOWED_STATES[action]:
            return 409
        if action == "decide":
            return 409 if role != stages[request.stage] or who in request.decided.values() else 0
        if action == "return":
            return 403 if role != stages[-1] else 0
        if action in {"fetch", "download", "extend"}:
            has_expired = request.available_until is None or request.available_until <= self.now
            return 409 if has_expired or (action == "download" and request.download_count == request.max_downloads) else 0
        return 0

    # --- Actions ---

    def path_of(self, number: int, what: str = "") -> str:
        return f"{paths.REQUESTS}{self.seen['request', number]}/{what}"

    def settle(self, number: int, *after: Request, is_done: bool) -> None:
        """Records the new state of a request. If an interruption leaves several candidates, a GET decides."""
        candidates = [*after] if is_done else [self.requests.get(number), *after]
        if len(candidates) > 1:
            seen = self.requests_seen(new=number).get(number)
            candidates = [request for request in candidates if (request and request.shown) == seen]
        if candidates[0] is not None:
            self.requests = {**self.requests, number: candidates[0]}

    def post_action(
        self, who: str | None, number: int, what: str, expect: int, data: Mapping[str, Any], fault: Fault, **changes: Any
    ) -> None:
        """Posts an action on a request. It must return `expect`, and a success makes these changes."""
        call = self.clients[who].post
        response = self.attempt(lambda: call(self.path_of(number, what), data), expect, fault=fault)
        if expect < 400:
            is_done = not INJECTOR.has_fired or (response is not None and response.status_code < 400)
            self.settle(number, replace(self.requests[number], **changes), is_done=is_done)

    # --- Effects of background jobs ---

    def outcomes(self, request: Request, *, is_whole: bool, is_stalled: bool) -> list[Request]:
        """Returns the possible states of a request after the jobs: only one, unless a run was interrupted."""
        ended = self.after_expiry(request)
        if is_whole and not is_stalled:
            return [self.after_jobs(ended)]
        if is_whole:
            return [self.after_jobs(ended), ended]
        after = [request, ended, self.after_jobs(request), self.after_jobs(ended)]
        if request.status == "approved":
            after[0] = replace(request, failed_builds=request.failed_builds + 1)
            if request.failed_builds >= MAX_ATTEMPTS:
                after.append(replace(request, status="failed", expires_at=self.now + EXPIRY))
        return after

    def after_expiry(self, request: Request) -> Request:
        """Returns the request after its expiry, or after the end of its package's availability."""
        if request.status in OPEN and request.expires_at and request.expires_at <= self.now:
            if request.status == "approved":
                return replace(request, status="failed", expires_at=self.now + EXPIRY)
            return replace(request, status="expired", expires_at=None)
        if request.status == "released":
            has_expired = request.available_until is not None and request.available_until <= self.now
            is_used_up = request.download_count == request.max_downloads
            is_inactive = request.touched_at is not None and request.touched_at <= self.now - RESUMABLE
            return replace(request, status="closed") if has_expired or (is_used_up and is_inactive) else request
        return request

    def after_jobs(self, request: Request) -> Request:
        """Returns the request after staging or packaging. Packaging requires that all approvers still have the right (INV-10)."""
        until = self.now + EXPIRY
        if request.status == "submitted":
            return replace(request, status="in_review", expires_at=until)
        if request.status != "approved":
            return request
        stages = STAGES[request.tenant]
        principal = {stage: who for stage, who in request.decided.items() if self.roles[who] == stages[stage]}
        if lost := request.decided.keys() - principal.keys():
            return replace(request, status="in_review", stage=min(lost), decided=principal, expires_at=until)
        if self.roles[request.requester] not in STORAGE_ROLES:
            return replace(request, status="failed", expires_at=until)
        return replace(request, status="released", expires_at=None, available_until=self.now + WINDOW)

    # --- Visibility ---

    def requests_seen(self, *, new: int = 0) -> dict[int, object]:
        """Returns what the requesters see. `new` is the number for a request that was not seen before."""
        numbers = {name: number for (kind, number), name in self.seen.items() if kind == "request"}
        self.details = {}
        for tenant, admin in ADMINS.items():
            for listed in self.get(admin, f"{paths.REQUESTS}?page_size=1000")["results"]:
                assert listed["tenant"] == tenant
                detail = self.get(listed["requester"], f"{paths.REQUESTS}{listed['id']}/")
                # These two fields depend on the user, and two users sent the requests.
                listed |= {name: detail[name] for name in ("allowed_actions", "links")}
                assert listed.items() <= detail.items()
                number = numbers.get(listed["id"], new)
                assert number not in self.details
                self.details[number] = detail
        return {number: comparable(detail) for number, detail in self.details.items()}

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
        for number, collection in self.state.items():
            if not collection.is_deleted:
                statuses = [request.status for request in self.requests.values() if request.collection == number]
                status = STATUS_OF_COLLECTION[statuses[-1]] if statuses else "none"
                was_released = any(STATUS_OF_COLLECTION[each] == "processed" for each in statuses)
                found, _ = self.listed[collection.tenant, collection.title]
                assert found["egress_status"] == ("processed" if status == "none" and was_released else status)
                assert found["is_held"] == self.is_pinned(number)

    def check_history(self, request: Request, statuses: list[str]) -> None:
        """INV-12, INV-13."""
        assert (statuses[0], statuses[-1]) == ("submitted", request.status)
        assert all(State(after) in TRANSITIONS[State(before)] for before, after in itertools.pairwise(statuses))
        assert [status for status, _ in itertools.groupby(statuses)].count("released") <= 1  # an extension is no release

    def check_view(self, who: str | None, number: int, request: Request) -> None:
        """INV-01; `allowed_actions` lists exactly what the user may do."""
        answer = self.clients[who].get(self.path_of(number))
        assert answer.status_code == (self.visibility_refusal(who, request) or 200)
        if answer.status_code == 200:
            assert set(answer.json()["allowed_actions"]) == {
                name for name in ACTIONS if not self.action_refusal(who, request, name)
            }

    def check_package(self, number: int, request: Request) -> None:
        """INV-11, INV-13: a release makes one package, with the pinned and approved content, and its bytes never change."""
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
    def egress_invariants_hold(self) -> None:
        """INV-10..INV-13; the staging bucket holds only copies for requests in review or before packaging."""
        staged = StagedFile.objects.filter(status=StagedFile.Status.STAGED).values_list("object_key", flat=True)
        due = StagedFile.objects.exclude(status=StagedFile.Status.WIPED).values_list("object_key", flat=True)
        found = {entry.key for alias, entry in invariants.entries() if alias == "staging"}
        assert set(staged) <= found <= set(due)


def comparable(detail: Any) -> dict[str, object]:
    """Returns the properties of an API response in the form of `Request.shown`."""
    touched = [parse_time(download["last_at"]) for download in detail["downloads"]]
    principal = [each for each in detail["decisions"] if each["round"] == detail["round"] and not each["voided_at"]]
    return {
        "status": detail["status"],
        "round": detail["round"],
        "awaited_role": detail["awaited_role"],
        "files": {item["filename"]: (item["length"], item["sha256"]) for item in detail["items"]},
        "decided": {each["stage"] - 1: each["by"] for each in principal},
        "expires_at": parse_time(detail["expires_at"]),
        "available_until": parse_time(detail["available_until"]),
        "max_downloads": detail["max_downloads"],
        "download_count": detail["download_count"],
        "touched_at": max([each for each in touched if each], default=None),
    }


def parse_time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
