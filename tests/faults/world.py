"""The model: what two tenants keep, what everybody may see of it, and how an answer is held against that.

An operation that was broken off has either happened or not, which only a GET tells; from there on it counts.
"""

import hashlib
import io
import itertools
import json
import logging
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import time_machine
from django.core.signals import request_finished
from django.db import close_old_connections, models
from django.test import override_settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant
from rest_framework.test import APIClient

from config.logs import JsonFormatter
from egress import jobs
from egress.models import Decision, Download, EgressPolicy, EgressRequest, StagedFile, Transition
from files.http.streaming import TransferEnded
from files.models import Collection, DownloadLink, Grant, Hold, PendingDeletion, StoredFile, Upload
from files.tasks import tick
from tenants.auth import tokens
from tenants.models import AuditHead, Mail, Tenant, User
from tests import invariants, nonces
from tests.api import paths
from tests.factories import make_member, make_tenant, make_user
from tests.faults.breaking import FUSE, KINDS, Killed
from tests.lifted import empty_database
from tests.meta.leaks import insides
from vault import identity
from vault.models import Key
from vault.stores import get_store


COUNTED: Counter[tuple[int, str, int | None]] = Counter()  # requests by the status that was due, the fault, and the status
ROWS: Sequence[type[models.Model]] = (
    Collection, StoredFile, Upload, PendingDeletion, Grant, Key, DownloadLink, Hold,
    EgressRequest, Transition, Decision, StagedFile, Download, Mail, AuditHead,
)  # fmt: skip
ROLES = {
    "alice": "admin", "bob": "member", "grace": "information_governance", "gary": "information_governance",
    "ruth": "research_it", "rick": "research_it", "greta": "admin", "mallory": "member",
}  # fmt: skip
PEOPLE = {name: "globex" if name in {"greta", "mallory"} else "acme" for name in ROLES}
ADMINS = {"acme": "alice", "globex": "greta"}
INSIDE = {"admin", "member"}  # roles of those who keep files; the others have a say in what leaves, and no more
QUOTA_BYTES, QUOTA_FILES = 400, 3  # of globex; acme has none
STAGES = {"acme": ["information_governance", "research_it"], "globex": ["research_it"]}
MAX_DOWNLOADS = {"acme": 1, "globex": 2}
PINNING = {"submitted", "in_review", "approved", "failed"}
# Names by the file that they mean: those of one line are one name.
TWINS = [
    ["canary-ä.txt", "CANARY-Ä.TXT", unicodedata.normalize("NFD", "canary-ä.txt")],
    ["canary-ß", "canary-SS"],
    ['canary;b="c".bin'],
    ["canary %41&+#?.csv"],
]
SAME: Final = {name: number for number, twins in enumerate(TWINS) for name in twins}
TITLES = ["Canary one", "canary one", "Canary zwölf"]
LINK_LIFE, RESUME_LIFE = timedelta(seconds=30), timedelta(minutes=10)


@dataclass(frozen=True)
class File:
    number: int  # stays with the file, while its version is new with every content
    version: int
    filename: str
    content: bytes
    notes: str = ""
    creator: str = ""
    writer: str = ""  # of its content


@dataclass(frozen=True)
class Case:
    """A collection."""

    tenant: str
    creator: str
    title: str
    files: Mapping[int, File]
    is_deleted: bool = False

    @property
    def shown(self) -> object:
        """What its manager can see of it."""
        if self.is_deleted:
            return "deleted"
        files = {file.filename: (file.content, file.notes) for file in self.files.values()}
        return len(files), sum(len(content) for content, _ in files.values()), files


GONE: Final = Case("", "", "", {}, is_deleted=True)  # nobody's, and nothing says that it ever was


@dataclass(frozen=True)
class Link:
    case: int
    minter: str
    url: str
    expires_at: datetime
    file: int | None  # number; none: an archive
    members: frozenset[int] = frozenset()
    claimed_at: datetime | None = None
    version: int = 0  # that was claimed


@dataclass(frozen=True)
class Request:
    """Files of a collection that somebody wants out."""

    case: int
    tenant: str
    requester: str
    pinned: tuple[File, ...]  # as they were
    expires_at: datetime | None
    status: str = "submitted"
    round: int = 1
    stage: int = 0
    decided: Mapping[int, str] = field(default_factory=dict)  # who, by stage, in this round
    available_until: datetime | None = None
    max_downloads: int = 1
    download_count: int = 0
    touched_at: datetime | None = None  # when bytes of the package last left
    troubles: int = 0  # times that the building of its package was broken off

    @property
    def shown(self) -> dict[str, object]:
        """What its requester can see of it."""
        return {
            "status": self.status,
            "round": self.round,
            "awaited_role": STAGES[self.tenant][self.stage] if self.status == "in_review" else "",
            "files": {file.filename: (len(file.content), hashlib.sha256(file.content).hexdigest()) for file in self.pinned},
            "decided": dict(self.decided),
            "expires_at": self.expires_at,
            "available_until": self.available_until,
            "max_downloads": self.max_downloads,
            "download_count": self.download_count,
            "touched_at": self.touched_at,
        }


State = Mapping[int, Case]
Fault = tuple[int, str] | None

PERSON = st.sampled_from(["alice", "alice", "alice", "bob", "bob", "greta", "mallory", "ruth", None])
NAME = st.sampled_from(sorted(SAME))
# With segments of 64 bytes the first holds 8 bytes of plaintext and each other one 48.
LENGTH = st.sampled_from([0, 1, 7, 8, 9, 55, 56, 57, 103, 104, 105]) | st.integers(0, 300)
CONTENT = st.builds(lambda length, seed: (f"canary {seed} ".encode() * 40)[:length], LENGTH, st.integers(0, 9))
FAULT: st.SearchStrategy[Fault] = st.none() | st.tuples(st.integers(1, 30), st.sampled_from(sorted(KINDS)))
ETAG = st.sampled_from(["none", "fresh", "fresh", "stale", "*"])


CASES, LINKS, REQUESTS = Bundle("cases"), Bundle("links"), Bundle("requests")


class World(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.state: State = {}
        self.links: dict[int, Link] = {}
        self.requests: Mapping[int, Request] = {}
        self.counter = itertools.count(1)
        self.seen: dict[tuple[str, int], str] = {}  # slugs, ids and ETags, once the server has named them
        self.roles = dict(ROLES)
        self.listed: dict[tuple[str, str], tuple[Any, list[Any]]] = {}  # what `observed` saw last
        self.secrets: list[str] = []
        self.lines: list[str] = []
        self.during = ExitStack()
        self.clock = self.during.enter_context(time_machine.travel(datetime.now(UTC), tick=False))
        self.during.enter_context(override_settings(FILES_SEGMENT_SIZE=64))
        self.during.callback(request_finished.connect, close_old_connections)  # Django's client forgets it when it is killed
        self._listen()
        for slug in ("acme", "globex"):
            make_tenant(slug)
        Tenant.objects.filter(slug="acme").update(allowed_ciphers=["AES-GCM", "NONE"])
        Tenant.objects.filter(slug="globex").update(quota_bytes=QUOTA_BYTES, quota_files=QUOTA_FILES)
        single = {"stages": STAGES["globex"], "max_downloads": MAX_DOWNLOADS["globex"]}
        EgressPolicy.objects.create(tenant=Tenant.objects.get(slug="globex"), **single)
        for name, tenant in PEOPLE.items():
            make_member(Tenant.objects.get(slug=tenant), name, self.roles[name])
        make_user("root", is_superuser=True)
        self.sign_in()

    def teardown(self) -> None:
        try:
            for _ in range(3):  # whatever was broken off, it is cleared away in the end
                self.clock.shift(timedelta(hours=2))
                tick()
                self.tick_egress()
            there = {entry.key for _, entry in invariants.entries() if not entry.key.startswith(identity.SYSTEM_PREFIX)}
            staged = StagedFile.objects.filter(status=StagedFile.Status.STAGED)
            assert there == {key for rows in (StoredFile.objects, staged) for key in rows.values_list("object_key", flat=True)}
            assert not StagedFile.objects.filter(status__in=[StagedFile.Status.PINNED, StagedFile.Status.WIPING]).exists()
            assert not EgressRequest.objects.filter(status__in=["submitted", "approved"]).exists()
            assert not Upload.objects.exists()
            assert not PendingDeletion.objects.exists()
            assert not DownloadLink.objects.exists()
        finally:
            for alias, entry in invariants.entries():
                get_store(alias).erase([entry])
            self.during.close()
            empty_database()  # the next example begins anew

    def _listen(self) -> None:
        handler = logging.Handler()
        handler.emit = lambda record: self.lines.append(JsonFormatter().format(record))  # type: ignore[method-assign]
        logging.getLogger().addHandler(handler)
        self.during.callback(logging.getLogger().removeHandler, handler)

    def tick_egress(self) -> None:
        """Copies are made, packages of what was approved, and copies wiped."""
        jobs.tick(now=self.now)
        jobs.pack()
        jobs.tick(now=self.now)

    # --- What the model knows ---

    @property
    def now(self) -> datetime:
        return datetime.now(UTC)

    def sign_in(self) -> None:
        self.clients: dict[str | None, APIClient] = {None: APIClient()}
        for name in [*PEOPLE, "root"]:
            token = tokens.mint(User.objects.get(username=name))["access"]
            self.clients[name] = APIClient()
            self.clients[name].credentials(HTTP_AUTHORIZATION=f"Bearer {token}")
            self.secrets.append(token)

    def refusal(self, who: str | None, case: Case, *, deleted: bool = False) -> int:
        """The status of whoever may not even see a collection; 0 for the others. With `deleted`, managers see those too."""
        if who is None:
            return 401
        if PEOPLE[who] != case.tenant or self.roles[who] not in INSIDE:
            return 404
        return 404 if case.is_deleted and not (deleted and self.manages(who, case)) else 0

    def manages(self, who: str, case: Case) -> bool:
        """Admins all of them, members their own."""
        return self.roles[who] == "admin" or (self.roles[who] == "member" and who == case.creator)

    def slug(self, case: int) -> str:
        return self.seen["slug", case]

    def chosen(self, case: int, names: list[str]) -> list[File] | None:
        """The files of these names, or all; none at all if one of them is missing."""
        files = self.state[case].files
        if not {SAME[name] for name in names} <= files.keys():
            return None
        return [file for same, file in files.items() if not names or same in {SAME[name] for name in names}]

    def is_pinned(self, case: int, file: File | None = None) -> bool:
        """It, or any file of the collection."""
        requests = [request for request in self.requests.values() if request.case == case and request.status in PINNING]
        return any(file is None or file.number == each.number for request in requests for each in request.pinned)

    def with_file(self, case: int, file: File, *, was: int | None = None) -> State:
        """The state with this file, in place of the one of its name or of the name `was`."""
        files = {same: other for same, other in self.state[case].files.items() if same != was}
        return {**self.state, case: replace(self.state[case], files=files | {SAME[file.filename]: file})}

    def over_quota(self, state: State, tenant: str, *, more_files: int, more_bytes: int) -> bool:
        files = [file for case in state.values() if case.tenant == tenant for file in case.files.values()]
        used = sum(len(file.content) for file in files)
        return tenant == "globex" and (
            (more_files > 0 and len(files) + more_files > QUOTA_FILES) or (more_bytes > 0 and used + more_bytes > QUOTA_BYTES)
        )

    # --- Asking, and what must hold of every answer ---

    def attempt(self, request: Callable[[], Any], expect: int, *after: State, fault: Fault = None) -> Any:
        """One request. Refused, it changes nothing; broken off by a fault, it leaves `after` or what was before.

        `after` are several states for what is atomic only in its parts; the last one is all of it.
        """
        before, response = rows(), None
        with FUSE.armed(*(fault or (0, ""))):
            response = request()
        COUNTED[expect, FUSE.kind if FUSE.is_blown else "", response and response.status_code] += 1
        if response is not None:
            self.check_answer(response, may_fail=FUSE.is_blown)
        if not FUSE.is_blown:
            assert response.status_code == expect, (response.status_code, getattr(response, "content", b""))
            if expect >= 400:
                assert rows() == before
            elif after:
                self.state = after[-1]
            return response
        is_done = response is not None and response.status_code < 400
        if is_done:
            assert response.status_code == expect
        candidates = [*after] if is_done and len(after) == 1 else [self.state, *after]
        seen = self.observed()
        self.state = next(state for state in candidates if shown(state) == seen and self.is_so_named(state))
        return response

    def fetch(
        self, who: str | None, path: str, expect: int, content: bytes, fault: Fault, headers: Mapping[str, str] | None = None
    ) -> bool:
        """A GET that is answered with `expect` and these bytes, or breaks visibly (INV-02). Whether it was answered so at all."""
        response, received, is_whole = None, b"", False
        with FUSE.armed(*(fault or (0, ""))):
            response = self.clients[who].get(path, headers=headers)
            received, is_whole = read(response) if response.streaming else (response.content, True)
        if response is not None:
            self.check_answer(response, may_fail=FUSE.is_blown)
        if response is None or (FUSE.is_blown and response.status_code == 503):
            return False
        assert response.status_code == expect
        if expect in {200, 206}:
            assert content == received if is_whole else FUSE.is_blown and content.startswith(received)
            assert int(response["Content-Length"]) == len(content)
        return True

    def check_answer(self, response: Any, *, may_fail: bool) -> None:
        """INV-17."""
        body = b"" if response.streaming else response.content
        assert insides(body + repr(response.headers).encode()) == []
        assert response.status_code < 500 or (may_fail and response.status_code == 503), body
        if response.status_code >= 400 and response.wsgi_request.method != "HEAD":
            assert response["Content-Type"] == "application/problem+json"
            assert json.loads(body)["status"] == response.status_code

    def get(self, who: str, path: str) -> Any:
        response = self.clients[who].get(path)
        assert response.status_code == 200
        return response.json()

    def observed(self) -> dict[tuple[str, str], object]:
        """What the managers of both tenants are shown, each of exactly their own, and the bytes (INV-01, -02, -05, -18)."""
        self.listed = {}
        found: dict[tuple[str, str], object] = {}
        for tenant, admin in ADMINS.items():
            for case in self.get(admin, f"{paths.COLLECTIONS}?page_size=1000")["results"]:
                assert case["tenant"] == tenant
                files = self.get(admin, f"{paths.files(case['id'])}?page_size=1000")["results"]
                stored = StoredFile.objects.filter(uuid__in=[file["id"] for file in files]).select_related("collection__key")
                contents = {row.filename: row.open().read() for row in stored}
                shown = {file["filename"]: (contents[file["filename"]], file["notes"]) for file in files}
                found[tenant, case["display_name"]] = (case["file_count"], case["total_length"], shown)
                self.listed[tenant, case["display_name"]] = (case, files)
        listed = {case["id"] for case, _ in self.listed.values()}
        for (kind, number), slug in self.seen.items():
            if kind == "slug" and self.state[number] == GONE:
                for admin in ADMINS.values():
                    assert self.clients[admin].get(paths.collection(slug)).status_code == 404  # INV-08
            elif kind == "slug" and slug not in listed:
                case = self.get(ADMINS[self.state[number].tenant], paths.collection(slug))
                found[case["tenant"], case["display_name"]] = case["status"]
        return found

    @invariant()
    def agrees(self) -> None:
        assert self.observed() == shown(self.state)
        self.learn()

    @invariant()
    def invariants_hold(self) -> None:
        """INV-04, INV-06, INV-18, INV-19, and the chain of the audit trail."""
        invariants.check_all()
        assert FUSE.opened == 0
        assert nonces.repeated == []

    @invariant()
    def logs_tell_nothing(self) -> None:
        """INV-15."""
        for line in self.lines:
            assert "canary" not in line.lower()
            assert not any(secret in line for secret in self.secrets)
        self.lines.clear()

    def names(self, state: State) -> dict[tuple[str, int], str]:
        """What the server calls the collections and files of this state, and their contents."""
        named = {}
        for number, case in state.items():
            if case.is_deleted:
                continue
            shown, files = self.listed[case.tenant, case.title]
            named["slug", number] = shown["id"]
            for file in files:
                known = case.files[SAME[file["filename"]]]
                named |= {("id", known.number): file["id"], ("etag", known.version): file["etag"]}
        return named

    def is_so_named(self, state: State) -> bool:
        """Names that the server gave stay as long as what they name."""
        named = self.names(state)
        return {key: self.seen.get(key, name) for key, name in named.items()} == named

    def learn(self) -> None:
        """They are nobody else's, too."""
        assert self.is_so_named(self.state)
        self.seen |= self.names(self.state)
        assert len(set(self.seen.values())) == len(self.seen)


def read(response: Any) -> tuple[bytes, bool]:
    """What came of a body, and whether it came to its end."""
    received = bytearray()
    try:
        for piece in response.streaming_content:
            received += piece
    except (TransferEnded, Killed):  # Django's client has closed the response
        return bytes(received), False
    return bytes(received), True


def unzipped(archive: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        assert opened.testzip() is None
        return {name: opened.read(name) for name in opened.namelist()}


def rows() -> list[list[dict[str, Any]]]:
    """Everything that a request can change, the head of the audit trail included."""
    return [list(model._default_manager.order_by("pk").values()) for model in ROWS]


def shown(state: State) -> dict[tuple[str, str], object]:
    return {(case.tenant, case.title): case.shown for case in state.values() if case != GONE}
