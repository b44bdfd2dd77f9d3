"""The complete state machine: adds rules for downloads, links, time, purges, key rotation and settings."""

import base64
import itertools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

from django.conf import settings as current
from django.db import OperationalError
from django.test import override_settings
from hypothesis import strategies as st
from hypothesis.stateful import multiple, rule

from files.models import Upload
from files.tasks import tick
from purge import jobs
from purge.models import Destruction
from tests.api import paths
from tests.faults.fault_injection import INJECTOR
from tests.faults.model.base import (
    COLLECTIONS,
    DESTROYED,
    ETAG,
    FAULT,
    FILE_KEY,
    LENGTH,
    LINK_LIFE,
    LINKS,
    NAME,
    PERSON,
    RESUME_LIFE,
    Fault,
    File,
    Link,
    read,
    rows,
    unzipped,
)
from tests.faults.model.egress_rules import EgressRules
from vault import keys
from vault.models import Key


class StrongroomMachine(EgressRules):
    # --- Downloads ---

    @rule(who=PERSON, collection=COLLECTIONS, name=NAME, view=st.sampled_from([paths.content, paths.preview]), fault=FAULT)
    def read(self, who: str | None, collection: int, name: str, view: Callable[[str, str], str], fault: Fault) -> None:
        file = self.state[collection].files.get(FILE_KEY[name])
        expect = self.collection_refusal(who, self.state[collection]) or (200 if file else 404)
        self.fetch(who, view(self.slug(collection), name), expect, file.content if file else b"", fault)

    @rule(who=PERSON, collection=COLLECTIONS, name=NAME, first=LENGTH, last=st.none() | LENGTH, fault=FAULT)
    def read_range(self, who: str | None, collection: int, name: str, first: int, last: int | None, fault: Fault) -> None:
        file = self.state[collection].files.get(FILE_KEY[name])
        expect, part = ranged(file.content if file else b"", first, last)
        expect = self.collection_refusal(who, self.state[collection]) or (expect if file else 404)
        wanted = f"bytes={first}-{'' if last is None else last}"
        self.fetch(who, paths.content(self.slug(collection), name), expect, part, fault, {"Range": wanted})

    @rule(
        who=PERSON,
        collection=COLLECTIONS,
        name=NAME,
        etag=ETAG,
        header=st.sampled_from(["If-None-Match", "If-Match", "If-Range"]),
    )
    def read_on_condition(self, who: str | None, collection: int, name: str, etag: str, header: str) -> None:
        file = self.state[collection].files.get(FILE_KEY[name])
        headers = self.condition(header, etag, file)
        fits, part = etag in {"fresh", "*"}, ranged(file.content if file else b"", 1, 9)
        expect, content = 200, file.content if file else b""
        if header == "If-Range" and (not headers or etag == "fresh"):
            expect, content = part
        elif headers and header != "If-Range" and fits == (header == "If-None-Match"):
            expect = 304 if header == "If-None-Match" else 412
        if header == "If-Range":
            headers["Range"] = "bytes=1-9"
        expect = self.collection_refusal(who, self.state[collection]) or (expect if file else 404)
        self.fetch(who, paths.content(self.slug(collection), name), expect, content, None, headers)

    @rule(who=PERSON, collection=COLLECTIONS, names=st.lists(NAME, max_size=2), fault=FAULT)
    def archive(self, who: str | None, collection: int, names: list[str], fault: Fault) -> None:
        chosen = self.chosen(collection, names)
        expect = self.collection_refusal(who, self.state[collection]) or (200 if chosen is not None else 404)
        response, received, is_whole = None, b"", False
        with INJECTOR.injecting(*(fault or (0, ""))):
            response = self.clients[who].get(paths.archive(self.slug(collection)), {"file": names})
            received, is_whole = read(response) if response.streaming else (response.content, True)
        if response is None or (INJECTOR.has_fired and response.status_code == 503):
            return
        self.check_answer(response, may_fail=False)
        assert response.status_code == expect
        assert is_whole or INJECTOR.has_fired
        if expect == 200 and is_whole:
            assert int(response["Content-Length"]) == len(received)
            assert unzipped(received) == {file.filename: file.content for file in chosen or []}

    # --- Links ---

    @rule(target=LINKS, who=PERSON, collection=COLLECTIONS, name=NAME, fault=FAULT)
    def mint(self, who: str | None, collection: int, name: str, fault: Fault) -> Any:
        file = self.state[collection].files.get(FILE_KEY[name])
        expect = self.collection_refusal(who, self.state[collection]) or (201 if file else 404)
        path = paths.download(self.slug(collection), name)
        return self.record_link(
            self.attempt(lambda: self.clients[who].post(path), expect, self.state, fault=fault), collection, who, file
        )

    @rule(target=LINKS, who=PERSON, collection=COLLECTIONS, names=st.lists(NAME, max_size=2), fault=FAULT)
    def mint_archive(self, who: str | None, collection: int, names: list[str], fault: Fault) -> Any:
        chosen = self.chosen(collection, names)
        expect = self.collection_refusal(who, self.state[collection]) or (201 if chosen is not None else 404)
        wish = {"file": names} if names else {}
        answer = self.attempt(
            lambda: self.clients[who].post(paths.archive_link(self.slug(collection)), wish), expect, self.state, fault=fault
        )
        members = frozenset(file.number for file in chosen or []) if names else frozenset()
        return self.record_link(answer, collection, who, None, members)

    def record_link(
        self, answer: Any, collection: int, who: str | None, file: File | None, members: frozenset[int] = frozenset()
    ) -> Any:
        if answer is None or answer.status_code != 201:
            return multiple()
        number, url = next(self.counter), answer.json()["url"]
        self.secrets.append(url.rpartition("/")[2])
        self.links[number] = Link(collection, str(who), url, self.now + LINK_LIFE, file.number if file else None, members)
        return number

    @rule(number=LINKS, wanted=st.sampled_from(["get", "get", "get", "head", "resume", "resume"]), fault=FAULT)
    def use_link(self, number: int, wanted: str, fault: Fault) -> None:
        """INV-09, and every condition that invalidates a link."""
        link = self.links[number]
        collection = self.state[link.collection]
        files = {file.number: file for file in collection.files.values()}
        file = files.get(link.file or 0)
        is_invalid = (
            self.collection_refusal(link.minter, collection) or (link.file and not file) or not link.members <= files.keys()
        )
        is_first = link.claimed_at is None
        expect, content = 200, file.content if file else b""
        if wanted == "resume" and file:
            expect, content = ranged(content, 1, None)
        if is_first:
            is_invalid = is_invalid or link.expires_at <= self.now
        else:
            may_resume = wanted == "resume" and file and expect != 200 and link.claimed_at + RESUME_LIFE >= self.now  # type: ignore[operator]
            is_invalid = is_invalid or not may_resume or file.version != link.version  # type: ignore[union-attr]
        expect = 404 if is_invalid else expect
        if wanted == "head":
            assert self.clients[None].head(link.url).status_code == (404 if is_invalid else 200)
            return
        if file is None and expect == 200:
            response = self.clients[None].get(link.url)
            assert response.status_code == 200
            zipped = unzipped(read(response)[0])
            chosen = [file for number, file in files.items() if number in link.members or not link.members]
            assert zipped == {file.filename: file.content for file in chosen}
            is_served = True
        else:
            headers = {"range": "bytes=1-"} if wanted == "resume" else {}
            is_served = self.fetch(None, link.url, expect, content, fault, headers)
        if is_first and is_served and expect in {200, 206}:
            self.links[number] = replace(link, claimed_at=self.now, version=file.version if file else 0)

    # --- Time, keys, settings ---

    @rule(seconds=st.sampled_from([0, 1, 31, 400, 700, 1000, 7200]), fault=FAULT)
    def tick(self, seconds: int, fault: Fault) -> None:
        """Advances the clock and runs the clean-up, possibly killed. No visible change; a second run changes nothing (INV-20)."""
        self.clock.shift(timedelta(seconds=seconds))
        if seconds > 60:
            self.sign_in()
        with INJECTOR.injecting(*(fault or (0, ""))):
            try:
                tick()
            except OperationalError:
                assert INJECTOR.has_fired
        if not INJECTOR.has_fired:
            before = rows()
            tick()
            assert rows() == before

    @rule(fault=FAULT)
    def purge(self, fault: Fault) -> None:
        """Purges deleted collections after their grace period, possibly interrupted; no trace remains (INV-07, INV-08)."""
        self.clock.shift(timedelta(hours=25))
        with INJECTOR.injecting(*(fault or (0, ""))), suppress(OperationalError):
            jobs.tick(now=self.now)
        if INJECTOR.has_fired or Upload.objects.exists():
            self.clock.shift(timedelta(minutes=10))  # past the lease of the interrupted worker
            tick()
            jobs.tick(now=self.now)
        self.sign_in()
        self.state = {number: DESTROYED if collection.is_deleted else collection for number, collection in self.state.items()}
        gone = Destruction.objects.filter(status=Destruction.Status.DONE)
        assert gone.count() == Destruction.objects.count()
        assert gone.exclude(reason=Destruction.Reason.ENDED).count() == sum(
            collection == DESTROYED for collection in self.state.values()
        )

    @rule(batches=st.integers(0, 4), fault=FAULT)
    def rotate(self, batches: int, fault: Fault) -> None:
        """Adds a master key and rotates some batches of data keys. Removes the old master keys once they wrap no data key."""
        new = f"key-{next(self.counter)} {base64.b64encode(next(self.counter).to_bytes(32, 'big')).decode()}"
        self.context.enter_context(override_settings(KEYRING=f"{current.KEYRING}\n{new}"))
        with INJECTOR.injecting(*(fault or (0, ""))):
            try:
                list(itertools.islice(keys.rotate(now=self.now, batch=1), batches))
            except OperationalError:
                assert INJECTOR.has_fired
        if not Key.objects.exclude(kek_id=new.partition(" ")[0]).exists():
            before = list(Key.objects.values())
            assert list(keys.rotate(now=self.now)) == []  # INV-20
            assert list(Key.objects.values()) == before
            self.context.enter_context(override_settings(KEYRING=new))

    @rule(size=st.sampled_from([57, 64, 100, 1024]))
    def change_segment_size(self, size: int) -> None:
        self.context.enter_context(override_settings(FILES_SEGMENT_SIZE=size))


def ranged(content: bytes, first: int, last: int | None) -> tuple[int, bytes]:
    if last is not None and last < first:
        return 200, content
    part = content[first:] if last is None else content[first : last + 1]
    return (206, part) if part else (416, b"")
