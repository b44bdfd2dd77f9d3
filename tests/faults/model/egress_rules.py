"""Rules of egress: every action on requests, attempted by every kind of user, and the background jobs (INV-10..INV-13)."""

from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from django.db import OperationalError
from hypothesis import strategies as st
from hypothesis.stateful import multiple, rule

from egress import jobs
from egress.models import EgressRequest, StagedFile
from files.filenames import unique_key
from tenants.models import Membership
from tests.api import paths
from tests.faults.fault_injection import FAULT_KINDS, INJECTOR
from tests.faults.model.base import (
    COLLECTIONS,
    FAULT,
    MAX_DOWNLOADS,
    NAME,
    PEOPLE,
    PERSON,
    REQUESTS,
    STAGES,
    Fault,
    File,
    Request,
    rows,
)
from tests.faults.model.egress_checks import EXPIRY, LEASE_TIMEOUT, OPEN, EgressChecks


DAY: Final = 24 * 3600
REASON: Final = "canary of a reason"
ENDED: Final = {"closed", "rejected", "withdrawn", "expired", "revoked"}
ANY_ACTOR = st.sampled_from([*PEOPLE, "root", None])
LONG_FAULT: st.SearchStrategy[Fault] = st.none() | st.tuples(st.integers(1, 120), st.sampled_from(sorted(FAULT_KINDS)))


class EgressRules(EgressChecks):
    # --- Actions of the requester ---

    @rule(
        target=REQUESTS, who=PERSON, collection=COLLECTIONS, names=st.none() | st.lists(NAME, min_size=1, max_size=2), fault=FAULT
    )
    def submit(self, who: str | None, collection: int, names: list[str] | None, fault: Fault) -> Any:
        mine, files = self.state[collection], self.chosen(collection, names or [])
        expect = {404: 400}.get(refusal := self.collection_refusal(who, mine), refusal)
        is_open = any(request.collection == collection and request.status in OPEN for request in self.requests.values())
        expect = expect or (409 if is_open else 201 if files else 400)
        wish = {"collection": self.slug(collection), "justification": REASON} | ({} if names is None else {"files": names})
        response = self.attempt(lambda: self.clients[who].post(paths.REQUESTS, wish), expect, fault=fault)
        if expect >= 400:
            return multiple()
        number, until = next(self.counter), self.now + EXPIRY
        most = MAX_DOWNLOADS[mine.tenant]
        made = Request(collection, mine.tenant, str(who), in_order(files or []), until, max_downloads=most)
        is_done = not INJECTOR.has_fired or (response is not None and response.status_code < 400)
        self.settle(number, made, is_done=is_done)
        self.agrees()
        return number if number in self.requests else multiple()

    @rule(who=ANY_ACTOR, number=REQUESTS, names=st.none() | st.lists(NAME, min_size=1, max_size=2), fault=FAULT)
    def resubmit(self, who: str | None, number: int, names: list[str] | None, fault: Fault) -> None:
        request = self.requests[number]
        collection = self.state[request.collection]
        files = self.chosen(request.collection, names or [file.filename for file in request.pinned])
        expect = self.action_refusal(who, request, "resubmit") or (409 if collection.is_deleted else 0)
        expect = expect or self.collection_refusal(who, collection) or (200 if files else 400)
        wish = {} if names is None else {"files": names}
        self.post_action(
            who,
            number,
            "resubmit/",
            expect,
            wish,
            fault,
            status="submitted",
            round=request.round + 1,
            stage=0,
            decided={},
            pinned=in_order(files or []),
            expires_at=self.now + EXPIRY,
        )

    @rule(who=ANY_ACTOR, number=REQUESTS, fault=FAULT)
    def withdraw(self, who: str | None, number: int, fault: Fault) -> None:
        expect = self.action_refusal(who, self.requests[number], "withdraw") or 200
        self.post_action(who, number, "withdraw/", expect, {"reason": REASON}, fault, status="withdrawn", expires_at=None)

    @rule(who=ANY_ACTOR, number=REQUESTS, wanted=st.sampled_from(["whole", "whole", "rest", "head"]), fault=FAULT)
    def download_package(self, who: str | None, number: int, wanted: str, fault: Fault) -> None:
        """INV-09: downloads count up to the approved number; an interrupted download can be resumed while available."""
        request, content = self.requests[number], self.packages.get(number, b"")
        is_resumed = wanted == "rest" and request.download_count > 0
        expect = self.action_refusal(who, request, "fetch" if is_resumed or wanted == "head" else "download")
        if wanted == "head":
            assert self.clients[who].head(self.path_of(number, "package.zip")).status_code == (expect or 200)
            return
        headers = {"Range": "bytes=1-"} if wanted == "rest" else {}
        part, status = (content[1:], 206) if wanted == "rest" else (content, 200)
        self.fetch(who, self.path_of(number, "package.zip"), expect or status, part, fault, headers)
        if not expect:
            count = request.download_count + (0 if is_resumed else 1)
            after = replace(request, download_count=count, touched_at=self.now)
            self.settle(number, after, is_done=not INJECTOR.has_fired)

    @rule(who=ANY_ACTOR, number=REQUESTS, fault=FAULT)
    def download_package_by_link(self, who: str | None, number: int, fault: Fault) -> None:
        """INV-09: a link counts when it is used, needs no authentication, and works once."""
        request, content = self.requests[number], self.packages.get(number, b"")
        expect = self.action_refusal(who, request, "download") or 201
        answer = self.attempt(lambda: self.clients[who].post(self.path_of(number, "downloads/")), expect)
        if expect < 400:
            url = answer.json()["url"]
            self.secrets.append(url.rpartition("/")[2])
            self.fetch(None, url, 200, content, fault)
            after = replace(request, download_count=request.download_count + 1, touched_at=self.now)
            self.settle(number, after, is_done=not INJECTOR.has_fired)
            if not INJECTOR.has_fired:
                self.fetch(None, url, 404, b"", None)

    # --- Actions of reviewers and operators ---

    @rule(who=ANY_ACTOR, number=REQUESTS, index=st.integers(0, 2), fault=FAULT)
    def read_item(self, who: str | None, number: int, index: int, fault: Fault) -> None:
        """Reads a staged copy, which must have the pinned bytes."""
        request = self.requests[number]
        file = request.pinned[index] if index < len(request.pinned) else None
        expect = self.visibility_refusal(who, request) or (
            404 if file is None else self.action_refusal(who, request, "read_items") or 200
        )
        self.fetch(who, self.path_of(number, f"items/{index + 1}/content"), expect, file.content if file else b"", fault)

    @rule(who=ANY_ACTOR, number=REQUESTS, verdict=st.sampled_from(["approve", "approve", "reject", "return"]), fault=FAULT)
    def decide(self, who: str | None, number: int, verdict: str, fault: Fault) -> None:
        request = self.requests[number]
        is_sent_back = verdict == "return" and request.status == "failed"
        expect = self.action_refusal(who, request, "return" if is_sent_back else "decide") or 201
        decided = dict(request.decided) if is_sent_back else {**request.decided, request.stage: str(who)}
        changes: dict[str, Any] = {"decided": decided}
        missing = set(range(len(STAGES[request.tenant]))) - decided.keys()
        if verdict == "approve" and missing:
            changes |= {"stage": min(missing)}
        elif verdict == "approve":
            changes |= {"status": "approved", "expires_at": self.now + EXPIRY, "failed_builds": 0}
        elif verdict == "reject":
            changes |= {"status": "rejected", "expires_at": None}
        else:
            changes |= {"status": "returned", "expires_at": self.now + EXPIRY}
        self.post_action(who, number, "decisions/", expect, {"verdict": verdict, "reason": REASON}, fault, **changes)

    @rule(who=ANY_ACTOR, number=REQUESTS, fault=FAULT)
    def revoke(self, who: str | None, number: int, fault: Fault) -> None:
        expect = self.action_refusal(who, self.requests[number], "revoke") or 200
        self.post_action(who, number, "revoke/", expect, {"reason": REASON}, fault, status="revoked")

    @rule(who=ANY_ACTOR, number=REQUESTS, fault=FAULT)
    def extend(self, who: str | None, number: int, fault: Fault) -> None:
        request = self.requests[number]
        expect = self.action_refusal(who, request, "extend") or 200
        until = (request.available_until or self.now) + timedelta(days=1)
        self.post_action(
            who,
            number,
            "extend/",
            expect,
            {"reason": REASON, "downloads": 1, "days": 1},
            fault,
            max_downloads=request.max_downloads + 1,
            available_until=until,
        )

    @rule(who=ANY_ACTOR, number=REQUESTS, fault=FAULT)
    def retry(self, who: str | None, number: int, fault: Fault) -> None:
        expect = self.action_refusal(who, self.requests[number], "retry") or 200
        self.post_action(
            who,
            number,
            "retry/",
            expect,
            {"reason": REASON},
            fault,
            status="approved",
            expires_at=self.now + EXPIRY,
            failed_builds=0,
        )

    @rule(
        who=st.sampled_from(["bob", "mallory", "grace", "ruth"]),
        role=st.sampled_from(["admin", "member", "information_governance", "research_it"]),
    )
    def change_role(self, who: str, role: str) -> None:
        """INV-16."""
        Membership.objects.filter(user__username=who).update(roles=[role])
        self.roles[who] = role

    # --- Background jobs ---

    @rule(seconds=st.sampled_from([0, 0, 0, 60, 301, 301, 3700, DAY, 8 * DAY, 22 * DAY]), fault=LONG_FAULT)
    def run_egress_jobs(self, seconds: int, fault: Fault) -> None:
        """Advances the clock, then stages, packages and wipes, possibly interrupted.

        After the lease timeout, a later run takes over interrupted work. A run after a complete one changes nothing (INV-20).
        """
        self.clock.shift(timedelta(seconds=seconds))
        if seconds > 60:
            self.sign_in()
        with INJECTOR.injecting(*(fault or (0, ""))):
            try:
                self.tick_egress()
            except OperationalError:
                assert INJECTOR.has_fired
        is_whole, is_stalled = not INJECTOR.has_fired, self.now <= self.stalled_until
        if not is_whole:
            self.stalled_until = self.now + LEASE_TIMEOUT
        seen = self.requests_seen()
        self.requests = {
            number: next(after for after in outcomes if after.shown == seen[number])
            for number, request in self.requests.items()
            for outcomes in [self.outcomes(request, is_whole=is_whole, is_stalled=is_stalled)]
        }
        for number, request in self.requests.items():
            self.check_package(number, request)
        if is_whole and not is_stalled:
            assert not StagedFile.objects.filter(status__in=[StagedFile.Status.PINNED, StagedFile.Status.WIPING]).exists()
            assert not EgressRequest.objects.exclude(status="failed").exclude(problem="").exists()
            before = rows()
            jobs.tick(now=self.now)
            jobs.build_packages()
            assert rows() == before

    @rule(number=REQUESTS, fault=LONG_FAULT)
    def advance(self, number: int, fault: Fault) -> None:
        """Performs the next step towards the release."""
        request = self.requests[number]
        able = [who for who in PEOPLE if not self.action_refusal(who, request, "decide")]
        match request.status:
            case "submitted" | "approved":
                self.run_egress_jobs(301 if self.now <= self.stalled_until else 0, fault)
            case "in_review" if able:
                self.decide(able[0], number, "approve", fault)
            case "returned":
                self.resubmit(request.requester, number, None, fault)
            case "failed":
                self.retry("root", number, fault)
            case "released":
                self.download_package(request.requester, number, "whole", fault)

    # --- Steps for the tests that interrupt one operation ---

    def make_request(self, collection: int, *, steps: int) -> int:
        """Makes a request by bob and advances it: 1 step to in review, 2 to the second stage, 3 to approved, 4 to released."""
        number: Any = self.submit("bob", collection, None, None)
        for _ in range(steps):
            self.advance(number, None)
        return int(number)

    def make_returned_request(self, collection: int) -> int:
        number = self.make_request(collection, steps=1)
        self.decide("grace", number, "return", None)
        return number

    def make_failed_request(self, collection: int, fault: Fault) -> int:
        """Makes an approved request whose packaging fails, because its requester temporarily may not read the files."""
        number = self.make_request(collection, steps=3)
        self.change_role("bob", "research_it")
        self.run_egress_jobs(0, fault)
        self.change_role("bob", "member")
        return number

    def assert_all_invariants(self) -> None:
        for check in (self.agrees, self.invariants_hold, self.egress_invariants_hold, self.logs_contain_no_secrets):
            check()

    def take_over_interrupted_work(self) -> None:
        """Runs the jobs after the lease timeout: they take over interrupted work."""
        self.run_egress_jobs(301, None)

    def finish_all_requests(self) -> None:
        for number in self.requests:
            for _ in range(8):
                if self.requests[number].status in ENDED or self.requests[number].download_count:
                    break
                self.advance(number, None)
            else:
                raise AssertionError(f"the request makes no progress: {self.requests[number]}")


def in_order(files: list[File]) -> tuple[File, ...]:
    return tuple(sorted(files, key=lambda file: unique_key(file.filename)))
