"""Egress: asked for, decided on, packed, fetched and ended, by whoever tries, and what goes on by itself (INV-10..INV-13)."""

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
from tests.faults.asking import EXPIRY, OPEN, PATIENCE, Asking
from tests.faults.breaking import FUSE, KINDS
from tests.faults.world import (
    CASES,
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


DAY: Final = 24 * 3600
REASON: Final = "canary of a reason"
ENDED: Final = {"closed", "rejected", "withdrawn", "expired", "revoked"}
ANYBODY = st.sampled_from([*PEOPLE, "root", None])
LONG_FAULT: st.SearchStrategy[Fault] = st.none() | st.tuples(st.integers(1, 120), st.sampled_from(sorted(KINDS)))


class LettingOut(Asking):
    # --- The requester's ---

    @rule(target=REQUESTS, who=PERSON, case=CASES, names=st.none() | st.lists(NAME, min_size=1, max_size=2), fault=FAULT)
    def submit(self, who: str | None, case: int, names: list[str] | None, fault: Fault) -> Any:
        mine, files = self.state[case], self.chosen(case, names or [])
        expect = {404: 400}.get(refusal := self.refusal(who, mine), refusal)
        is_open = any(request.case == case and request.status in OPEN for request in self.requests.values())
        expect = expect or (409 if is_open else 201 if files else 400)
        wish = {"collection": self.slug(case), "justification": REASON} | ({} if names is None else {"files": names})
        response = self.attempt(lambda: self.clients[who].post(paths.REQUESTS, wish), expect, fault=fault)
        if expect >= 400:
            return multiple()
        number, until = next(self.counter), self.now + EXPIRY
        most = MAX_DOWNLOADS[mine.tenant]
        made = Request(case, mine.tenant, str(who), in_order(files or []), until, max_downloads=most)
        is_done = not FUSE.is_blown or (response is not None and response.status_code < 400)
        self.refund(number, made, is_done=is_done)
        self.agrees()
        return number if number in self.requests else multiple()

    @rule(who=ANYBODY, number=REQUESTS, names=st.none() | st.lists(NAME, min_size=1, max_size=2), fault=FAULT)
    def resubmit(self, who: str | None, number: int, names: list[str] | None, fault: Fault) -> None:
        request = self.requests[number]
        case = self.state[request.case]
        files = self.chosen(request.case, names or [file.filename for file in request.pinned])
        expect = self.forbidden(who, request, "resubmit") or (409 if case.is_deleted else 0)
        expect = expect or self.refusal(who, case) or (200 if files else 400)
        wish = {} if names is None else {"files": names}
        self.move(who, number, "resubmit/", expect, wish, fault, status="submitted", round=request.round + 1, stage=0, decided={},
                  pinned=in_order(files or []), expires_at=self.now + EXPIRY)  # fmt: skip

    @rule(who=ANYBODY, number=REQUESTS, fault=FAULT)
    def withdraw(self, who: str | None, number: int, fault: Fault) -> None:
        expect = self.forbidden(who, self.requests[number], "withdraw") or 200
        self.move(who, number, "withdraw/", expect, {"reason": REASON}, fault, status="withdrawn", expires_at=None)

    @rule(who=ANYBODY, number=REQUESTS, wanted=st.sampled_from(["whole", "whole", "rest", "head"]), fault=FAULT)
    def take(self, who: str | None, number: int, wanted: str, fault: Fault) -> None:
        """The package. INV-09: so often as was approved, and the rest of what broke for as long as it is to be had."""
        request, content = self.requests[number], self.packages.get(number, b"")
        is_resumed = wanted == "rest" and request.download_count > 0
        expect = self.forbidden(who, request, "fetch" if is_resumed or wanted == "head" else "download")
        if wanted == "head":
            assert self.clients[who].head(self.address(number, "package.zip")).status_code == (expect or 200)
            return
        headers = {"Range": "bytes=1-"} if wanted == "rest" else {}
        part, status = (content[1:], 206) if wanted == "rest" else (content, 200)
        self.fetch(who, self.address(number, "package.zip"), expect or status, part, fault, headers)
        if not expect:
            count = request.download_count + (0 if is_resumed else 1)
            after = replace(request, download_count=count, touched_at=self.now)
            self.refund(number, after, is_done=not FUSE.is_blown)

    @rule(who=ANYBODY, number=REQUESTS, fault=FAULT)
    def take_by_link(self, who: str | None, number: int, fault: Fault) -> None:
        """Counts when it is used, by whoever has it, and is used up then."""
        request, content = self.requests[number], self.packages.get(number, b"")
        expect = self.forbidden(who, request, "download") or 201
        answer = self.attempt(lambda: self.clients[who].post(self.address(number, "downloads/")), expect)
        if expect < 400:
            url = answer.json()["url"]
            self.secrets.append(url.rpartition("/")[2])
            self.fetch(None, url, 200, content, fault)
            after = replace(request, download_count=request.download_count + 1, touched_at=self.now)
            self.refund(number, after, is_done=not FUSE.is_blown)
            if not FUSE.is_blown:
                self.fetch(None, url, 404, b"", None)

    # --- The reviewers' ---

    @rule(who=ANYBODY, number=REQUESTS, index=st.integers(0, 2), fault=FAULT)
    def read_item(self, who: str | None, number: int, index: int, fault: Fault) -> None:
        """A staged copy: the bytes that were pinned."""
        request = self.requests[number]
        file = request.pinned[index] if index < len(request.pinned) else None
        expect = self.sees(who, request) or (404 if file is None else self.forbidden(who, request, "read_items") or 200)
        self.fetch(who, self.address(number, f"items/{index + 1}/content"), expect, file.content if file else b"", fault)

    @rule(who=ANYBODY, number=REQUESTS, verdict=st.sampled_from(["approve", "approve", "reject", "return"]), fault=FAULT)
    def decide(self, who: str | None, number: int, verdict: str, fault: Fault) -> None:
        request = self.requests[number]
        is_sent_back = verdict == "return" and request.status == "failed"
        expect = self.forbidden(who, request, "return" if is_sent_back else "decide") or 201
        decided = dict(request.decided) if is_sent_back else {**request.decided, request.stage: str(who)}
        changes: dict[str, Any] = {"decided": decided}
        missing = set(range(len(STAGES[request.tenant]))) - decided.keys()
        if verdict == "approve" and missing:
            changes |= {"stage": min(missing)}
        elif verdict == "approve":
            changes |= {"status": "approved", "expires_at": self.now + EXPIRY, "troubles": 0}
        elif verdict == "reject":
            changes |= {"status": "rejected", "expires_at": None}
        else:
            changes |= {"status": "returned", "expires_at": self.now + EXPIRY}
        self.move(who, number, "decisions/", expect, {"verdict": verdict, "reason": REASON}, fault, **changes)

    @rule(who=ANYBODY, number=REQUESTS, fault=FAULT)
    def revoke(self, who: str | None, number: int, fault: Fault) -> None:
        expect = self.forbidden(who, self.requests[number], "revoke") or 200
        self.move(who, number, "revoke/", expect, {"reason": REASON}, fault, status="revoked")

    @rule(who=ANYBODY, number=REQUESTS, fault=FAULT)
    def extend(self, who: str | None, number: int, fault: Fault) -> None:
        request = self.requests[number]
        expect = self.forbidden(who, request, "extend") or 200
        until = (request.available_until or self.now) + timedelta(days=1)
        self.move(who, number, "extend/", expect, {"reason": REASON, "downloads": 1, "days": 1}, fault,
                  max_downloads=request.max_downloads + 1, available_until=until)  # fmt: skip

    @rule(who=ANYBODY, number=REQUESTS, fault=FAULT)
    def retry(self, who: str | None, number: int, fault: Fault) -> None:
        """For operators."""
        expect = self.forbidden(who, self.requests[number], "retry") or 200
        self.move(who, number, "retry/", expect, {"reason": REASON}, fault, status="approved", expires_at=self.now + EXPIRY,
                  troubles=0)  # fmt: skip

    @rule(
        who=st.sampled_from(["bob", "mallory", "grace", "ruth"]),
        role=st.sampled_from(["admin", "member", "information_governance", "research_it"]),
    )
    def change_role(self, who: str, role: str) -> None:
        """INV-16."""
        Membership.objects.filter(user__username=who).update(roles=[role])
        self.roles[who] = role

    # --- What goes on by itself ---

    @rule(seconds=st.sampled_from([0, 0, 0, 60, 301, 301, 3700, DAY, 8 * DAY, 22 * DAY]), fault=LONG_FAULT)
    def work(self, seconds: int, fault: Fault) -> None:
        """Time moves on; copies, packages and wiping, whole or broken off. What was is gone on with when it is given up for dead,
        and once all is done a second run has nothing to do (INV-20)."""
        self.clock.shift(timedelta(seconds=seconds))
        if seconds > 60:
            self.sign_in()
        with FUSE.armed(*(fault or (0, ""))):
            try:
                self.tick_egress()
            except OperationalError:
                assert FUSE.is_blown
        is_whole, is_stalled = not FUSE.is_blown, self.now <= self.stalled_until
        if not is_whole:
            self.stalled_until = self.now + PATIENCE
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
            jobs.pack()
            assert rows() == before

    @rule(number=REQUESTS, fault=LONG_FAULT)
    def go_on(self, number: int, fault: Fault) -> None:
        """What comes next on its way out."""
        request = self.requests[number]
        able = [who for who in PEOPLE if not self.forbidden(who, request, "decide")]
        match request.status:
            case "submitted" | "approved":
                self.work(301 if self.now <= self.stalled_until else 0, fault)
            case "in_review" if able:
                self.decide(able[0], number, "approve", fault)
            case "returned":
                self.resubmit(request.requester, number, None, fault)
            case "failed":
                self.retry("root", number, fault)
            case "released":
                self.take(request.requester, number, "whole", fault)

    # --- For those who break something off ---

    def asked(self, case: int, *, steps: int) -> int:
        """A request of bob's that went so many steps: it is in review, at its second stage, approved, released."""
        number: Any = self.submit("bob", case, None, None)
        for _ in range(steps):
            self.go_on(number, None)
        return int(number)

    def returned(self, case: int) -> int:
        number = self.asked(case, steps=1)
        self.decide("grace", number, "return", None)
        return number

    def failed(self, case: int, fault: Fault) -> int:
        """Approved, and then its requester may not read the files for a while."""
        number = self.asked(case, steps=3)
        self.change_role("bob", "research_it")
        self.work(0, fault)
        self.change_role("bob", "member")
        return number

    def all_holds(self) -> None:
        for check in (self.agrees, self.invariants_hold, self.egress_holds, self.logs_tell_nothing):
            check()

    def go_on_alone(self) -> None:
        """What was broken off is taken up by others, and in nobody's way."""
        self.work(301, None)

    def go_to_the_end(self) -> None:
        for number in self.requests:
            for _ in range(8):
                if self.requests[number].status in ENDED or self.requests[number].download_count:
                    break
                self.go_on(number, None)
            else:
                raise AssertionError(f"it got stuck: {self.requests[number]}")


def in_order(files: list[File]) -> tuple[File, ...]:
    return tuple(sorted(files, key=lambda file: unique_key(file.filename)))
