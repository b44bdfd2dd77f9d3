"""The state machine's base: the modelled data of two tenants, its visibility, and the comparison of responses with the model.

After an interrupted operation either the old or the new state is correct. A GET decides which one the model continues with.
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
from tests import invariants, nonce_recorder
from tests.api import paths
from tests.database_guards import empty_database
from tests.factories import make_member, make_tenant, make_user
from tests.faults.fault_injection import FAULT_KINDS, INJECTOR, Killed
from tests.meta.internals import exposed_internals
from vault import identity
from vault.models import Key
from vault.stores import get_store


REQUEST_COUNTS: Counter[tuple[int, str, int | None]] = Counter()  # by expected status, kind of fault and actual status
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
STORAGE_ROLES = {"admin", "member"}  # the roles that can have access to collections; the other roles only review egress
QUOTA_BYTES, QUOTA_FILES = 400, 3  # of globex; acme has no quota
STAGES = {"acme": ["information_governance", "research_it"], "globex": ["research_it"]}
MAX_DOWNLOADS = {"acme": 1, "globex": 2}
PINNING = {"submitted", "in_review", "approved", "failed"}
# Each line holds the spellings that the server treats as one filename.
EQUIVALENT_NAMES = [
    ["canary-ä.txt", "CANARY-Ä.TXT", unicodedata.normalize("NFD", "canary-ä.txt")],
    ["canary-ß", "canary-SS"],
    ['canary;b="c".bin'],
    ["canary %41&+#?.csv"],
]
FILE_KEY: Final = {name: number for number, twins in enumerate(EQUIVALENT_NAMES) for name in twins}
TITLES = ["Canary one", "canary one", "Canary zwölf"]
LINK_LIFE, RESUME_LIFE = timedelta(seconds=30), timedelta(minutes=10)


@dataclass(frozen=True)
class File:
    number: int  # identifies the file; each new content gets a new version
    version: int
    filename: str
    content: bytes
    notes: str = ""
    creator: str = ""
    writer: str = ""  # who uploaded the current content


@dataclass(frozen=True)
class ModelCollection:
    tenant: str
    creator: str
    title: str
    files: Mapping[int, File]
    is_deleted: bool = False

    @property
    def shown(self) -> object:
        """The properties that its managers see in the API."""
        if self.is_deleted:
            return "deleted"
        files = {file.filename: (file.content, file.notes) for file in self.files.values()}
        return len(files), sum(len(content) for content, _ in files.values()), files


DESTROYED: Final = ModelCollection("", "", "", {}, is_deleted=True)


@dataclass(frozen=True)
class Link:
    collection: int
    minter: str
    url: str
    expires_at: datetime
    file: int | None  # number of the file; None for an archive
    members: frozenset[int] = frozenset()
    claimed_at: datetime | None = None
    version: int = 0  # of the file when the link was claimed


@dataclass(frozen=True)
class Request:
    """An egress request."""

    collection: int
    tenant: str
    requester: str
    pinned: tuple[File, ...]  # as they were at submission
    expires_at: datetime | None
    status: str = "submitted"
    round: int = 1
    stage: int = 0
    decided: Mapping[int, str] = field(default_factory=dict)  # stage -> reviewer, in the current round
    available_until: datetime | None = None
    max_downloads: int = 1
    download_count: int = 0
    touched_at: datetime | None = None  # time of the latest download of package bytes
    failed_builds: int = 0  # interrupted attempts to build the package

    @property
    def shown(self) -> dict[str, object]:
        """The properties that its requester sees in the API."""
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


State = Mapping[int, ModelCollection]
Fault = tuple[int, str] | None

PERSON = st.sampled_from(["alice", "alice", "alice", "bob", "bob", "greta", "mallory", "ruth", None])
NAME = st.sampled_from(sorted(FILE_KEY))
# With segments of 64 bytes, the first segment holds 8 bytes of plaintext and each later one 48.
LENGTH = st.sampled_from([0, 1, 7, 8, 9, 55, 56, 57, 103, 104, 105]) | st.integers(0, 300)
CONTENT = st.builds(lambda length, seed: (f"canary {seed} ".encode() * 40)[:length], LENGTH, st.integers(0, 9))
FAULT: st.SearchStrategy[Fault] = st.none() | st.tuples(st.integers(1, 30), st.sampled_from(sorted(FAULT_KINDS)))
ETAG = st.sampled_from(["none", "fresh", "fresh", "stale", "*"])


COLLECTIONS, LINKS, REQUESTS = Bundle("cases"), Bundle("links"), Bundle("requests")


class ModelBase(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.state: State = {}
        self.links: dict[int, Link] = {}
        self.requests: Mapping[int, Request] = {}
        self.counter = itertools.count(1)
        self.seen: dict[tuple[str, int], str] = {}  # slugs, ids and ETags that the server has returned
        self.roles = dict(ROLES)
        self.listed: dict[tuple[str, str], tuple[Any, list[Any]]] = {}  # the latest result of `observed`
        self.secrets: list[str] = []
        self.lines: list[str] = []
        self.context = ExitStack()
        self.clock = self.context.enter_context(time_machine.travel(datetime.now(UTC), tick=False))
        self.context.enter_context(override_settings(FILES_SEGMENT_SIZE=64))
        # Django's test client disconnects this handler and, after a simulated kill, does not connect it again.
        self.context.callback(request_finished.connect, close_old_connections)
        self._capture_logs()
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
            for _ in range(3):  # enough to clean up after any interruption
                self.clock.shift(timedelta(hours=2))
                tick()
                self.tick_egress()
            stored = {entry.key for _, entry in invariants.entries() if not entry.key.startswith(identity.SYSTEM_PREFIX)}
            staged = StagedFile.objects.filter(status=StagedFile.Status.STAGED)
            assert stored == {key for rows in (StoredFile.objects, staged) for key in rows.values_list("object_key", flat=True)}
            assert not StagedFile.objects.filter(status__in=[StagedFile.Status.PINNED, StagedFile.Status.WIPING]).exists()
            assert not EgressRequest.objects.filter(status__in=["submitted", "approved"]).exists()
            assert not Upload.objects.exists()
            assert not PendingDeletion.objects.exists()
            assert not DownloadLink.objects.exists()
        finally:
            for alias, entry in invariants.entries():
                get_store(alias).erase([entry])
            self.context.close()
            empty_database()

    def _capture_logs(self) -> None:
        handler = logging.Handler()
        handler.emit = lambda record: self.lines.append(JsonFormatter().format(record))  # type: ignore[method-assign]
        logging.getLogger().addHandler(handler)
        self.context.callback(logging.getLogger().removeHandler, handler)

    def tick_egress(self) -> None:
        """Makes staged copies, builds the packages of approved requests, and wipes staged copies."""
        jobs.tick(now=self.now)
        jobs.build_packages()
        jobs.tick(now=self.now)

    # --- Expectations of the model ---

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

    def collection_refusal(self, who: str | None, collection: ModelCollection, *, deleted: bool = False) -> int:
        """Returns the status for a user who may not see the collection, or 0. With `deleted`, managers see deleted ones, too."""
        if who is None:
            return 401
        if PEOPLE[who] != collection.tenant or self.roles[who] not in STORAGE_ROLES:
            return 404
        return 404 if collection.is_deleted and not (deleted and self.manages(who, collection)) else 0

    def manages(self, who: str, collection: ModelCollection) -> bool:
        """Returns whether the user is a manager: admins of all collections, members of their own."""
        return self.roles[who] == "admin" or (self.roles[who] == "member" and who == collection.creator)

    def slug(self, collection: int) -> str:
        return self.seen["slug", collection]

    def chosen(self, collection: int, names: list[str]) -> list[File] | None:
        """Returns the files with these names, or all files for an empty list; None if one is missing."""
        files = self.state[collection].files
        if not {FILE_KEY[name] for name in names} <= files.keys():
            return None
        return [file for same, file in files.items() if not names or same in {FILE_KEY[name] for name in names}]

    def is_pinned(self, collection: int, file: File | None = None) -> bool:
        """Returns whether an egress request pins the file, or any file of the collection."""
        requests = [
            request for request in self.requests.values() if request.collection == collection and request.status in PINNING
        ]
        return any(file is None or file.number == each.number for request in requests for each in request.pinned)

    def with_file(self, collection: int, file: File, *, was: int | None = None) -> State:
        """Returns the state after adding the file. It replaces the file with the same name or with the key `was`."""
        files = {same: other for same, other in self.state[collection].files.items() if same != was}
        return {**self.state, collection: replace(self.state[collection], files=files | {FILE_KEY[file.filename]: file})}

    def over_quota(self, state: State, tenant: str, *, more_files: int, more_bytes: int) -> bool:
        files = [file for collection in state.values() if collection.tenant == tenant for file in collection.files.values()]
        used = sum(len(file.content) for file in files)
        return tenant == "globex" and (
            (more_files > 0 and len(files) + more_files > QUOTA_FILES) or (more_bytes > 0 and used + more_bytes > QUOTA_BYTES)
        )

    # --- Requests, and the checks of every response ---

    def attempt(self, request: Callable[[], Any], expect: int, *after: State, fault: Fault = None) -> Any:
        """Sends one request. A refusal must change nothing; an interruption must leave a state of `after` or the old state.

        `after` has several states if the operation is atomic only in its parts. The last one is the complete result.
        """
        before, response = rows(), None
        with INJECTOR.injecting(*(fault or (0, ""))):
            response = request()
        REQUEST_COUNTS[expect, INJECTOR.kind if INJECTOR.has_fired else "", response and response.status_code] += 1
        if response is not None:
            self.check_answer(response, may_fail=INJECTOR.has_fired)
        if not INJECTOR.has_fired:
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
        self.state = next(state for state in candidates if visible(state) == seen and self.names_match(state))
        return response

    def fetch(
        self, who: str | None, path: str, expect: int, content: bytes, fault: Fault, headers: Mapping[str, str] | None = None
    ) -> bool:
        """Sends a GET that must return status `expect` and these bytes, or end visibly short (INV-02).

        Returns False if an injected fault prevented the response.
        """
        response, received, is_whole = None, b"", False
        with INJECTOR.injecting(*(fault or (0, ""))):
            response = self.clients[who].get(path, headers=headers)
            received, is_whole = read(response) if response.streaming else (response.content, True)
        if response is not None:
            self.check_answer(response, may_fail=INJECTOR.has_fired)
        if response is None or (INJECTOR.has_fired and response.status_code == 503):
            return False
        assert response.status_code == expect
        if expect in {200, 206}:
            assert content == received if is_whole else INJECTOR.has_fired and content.startswith(received)
            assert int(response["Content-Length"]) == len(content)
        return True

    def check_answer(self, response: Any, *, may_fail: bool) -> None:
        """INV-17."""
        body = b"" if response.streaming else response.content
        assert exposed_internals(body + repr(response.headers).encode()) == []
        assert response.status_code < 500 or (may_fail and response.status_code == 503), body
        if response.status_code >= 400 and response.wsgi_request.method != "HEAD":
            assert response["Content-Type"] == "application/problem+json"
            assert json.loads(body)["status"] == response.status_code

    def get(self, who: str, path: str) -> Any:
        response = self.clients[who].get(path)
        assert response.status_code == 200
        return response.json()

    def observed(self) -> dict[tuple[str, str], object]:
        """Returns what the admins of both tenants see, each only of their own tenant, with contents (INV-01, -02, -05, -18)."""
        self.listed = {}
        found: dict[tuple[str, str], object] = {}
        for tenant, admin in ADMINS.items():
            for collection in self.get(admin, f"{paths.COLLECTIONS}?page_size=1000")["results"]:
                assert collection["tenant"] == tenant
                files = self.get(admin, f"{paths.files(collection['id'])}?page_size=1000")["results"]
                stored = StoredFile.objects.filter(uuid__in=[file["id"] for file in files]).select_related("collection__key")
                contents = {row.filename: row.open().read() for row in stored}
                shown = {file["filename"]: (contents[file["filename"]], file["notes"]) for file in files}
                found[tenant, collection["display_name"]] = (collection["file_count"], collection["total_length"], shown)
                self.listed[tenant, collection["display_name"]] = (collection, files)
        listed = {collection["id"] for collection, _ in self.listed.values()}
        for (kind, number), slug in self.seen.items():
            if kind == "slug" and self.state[number] == DESTROYED:
                for admin in ADMINS.values():
                    assert self.clients[admin].get(paths.collection(slug)).status_code == 404  # INV-08
            elif kind == "slug" and slug not in listed:
                collection = self.get(ADMINS[self.state[number].tenant], paths.collection(slug))
                found[collection["tenant"], collection["display_name"]] = collection["status"]
        return found

    @invariant()
    def agrees(self) -> None:
        assert self.observed() == visible(self.state)
        self.remember_names()

    @invariant()
    def invariants_hold(self) -> None:
        """INV-04, INV-06, INV-18, INV-19, and the hash chain of the audit trail."""
        invariants.check_all()
        assert INJECTOR.open_bodies == 0
        assert nonce_recorder.repeated_lengths == []

    @invariant()
    def logs_contain_no_secrets(self) -> None:
        """INV-15."""
        for line in self.lines:
            assert "canary" not in line.lower()
            assert not any(secret in line for secret in self.secrets)
        self.lines.clear()

    def names(self, state: State) -> dict[tuple[str, int], str]:
        """Returns the ids and ETags that the server uses for the collections, files and contents of this state."""
        named = {}
        for number, collection in state.items():
            if collection.is_deleted:
                continue
            shown, files = self.listed[collection.tenant, collection.title]
            named["slug", number] = shown["id"]
            for file in files:
                known = collection.files[FILE_KEY[file["filename"]]]
                named |= {("id", known.number): file["id"], ("etag", known.version): file["etag"]}
        return named

    def names_match(self, state: State) -> bool:
        """Returns whether the server still uses the same ids and ETags as before."""
        named = self.names(state)
        return {key: self.seen.get(key, name) for key, name in named.items()} == named

    def remember_names(self) -> None:
        """Remembers ids and ETags, which must be unique."""
        assert self.names_match(self.state)
        self.seen |= self.names(self.state)
        assert len(set(self.seen.values())) == len(self.seen)


def read(response: Any) -> tuple[bytes, bool]:
    """Returns the received part of a streamed body, and whether it is complete."""
    received = bytearray()
    try:
        for piece in response.streaming_content:
            received += piece
    except (TransferEnded, Killed):  # Django's test client has closed the response
        return bytes(received), False
    return bytes(received), True


def unzipped(archive: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        assert opened.testzip() is None
        return {name: opened.read(name) for name in opened.namelist()}


def rows() -> list[list[dict[str, Any]]]:
    """Returns all rows that a request can change, including the head of the audit trail."""
    return [list(model._default_manager.order_by("pk").values()) for model in ROWS]


def visible(state: State) -> dict[tuple[str, str], object]:
    return {(collection.tenant, collection.title): collection.shown for collection in state.values() if collection != DESTROYED}
