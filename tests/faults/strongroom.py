"""Bytes going out, links, and what happens beside requests: time, keys, settings."""

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
from tests.faults.breaking import FUSE
from tests.faults.letting_out import LettingOut
from tests.faults.world import (
    CASES,
    ETAG,
    FAULT,
    GONE,
    LENGTH,
    LINK_LIFE,
    LINKS,
    NAME,
    PERSON,
    RESUME_LIFE,
    SAME,
    Fault,
    File,
    Link,
    read,
    rows,
    unzipped,
)
from vault import keys
from vault.models import Key


class Strongroom(LettingOut):
    # --- Bytes going out ---

    @rule(who=PERSON, case=CASES, name=NAME, view=st.sampled_from([paths.content, paths.preview]), fault=FAULT)
    def read(self, who: str | None, case: int, name: str, view: Callable[[str, str], str], fault: Fault) -> None:
        file = self.state[case].files.get(SAME[name])
        expect = self.refusal(who, self.state[case]) or (200 if file else 404)
        self.fetch(who, view(self.slug(case), name), expect, file.content if file else b"", fault)

    @rule(who=PERSON, case=CASES, name=NAME, first=LENGTH, last=st.none() | LENGTH, fault=FAULT)
    def read_range(self, who: str | None, case: int, name: str, first: int, last: int | None, fault: Fault) -> None:
        file = self.state[case].files.get(SAME[name])
        expect, part = ranged(file.content if file else b"", first, last)
        expect = self.refusal(who, self.state[case]) or (expect if file else 404)
        wanted = f"bytes={first}-{'' if last is None else last}"
        self.fetch(who, paths.content(self.slug(case), name), expect, part, fault, {"Range": wanted})

    @rule(who=PERSON, case=CASES, name=NAME, etag=ETAG, header=st.sampled_from(["If-None-Match", "If-Match", "If-Range"]))
    def read_on_condition(self, who: str | None, case: int, name: str, etag: str, header: str) -> None:
        file = self.state[case].files.get(SAME[name])
        headers = self.condition(header, etag, file)
        fits, part = etag in {"fresh", "*"}, ranged(file.content if file else b"", 1, 9)
        expect, content = 200, file.content if file else b""
        if header == "If-Range" and (not headers or etag == "fresh"):
            expect, content = part
        elif headers and header != "If-Range" and fits == (header == "If-None-Match"):
            expect = 304 if header == "If-None-Match" else 412
        if header == "If-Range":
            headers["Range"] = "bytes=1-9"
        expect = self.refusal(who, self.state[case]) or (expect if file else 404)
        self.fetch(who, paths.content(self.slug(case), name), expect, content, None, headers)

    @rule(who=PERSON, case=CASES, names=st.lists(NAME, max_size=2), fault=FAULT)
    def archive(self, who: str | None, case: int, names: list[str], fault: Fault) -> None:
        chosen = self.chosen(case, names)
        expect = self.refusal(who, self.state[case]) or (200 if chosen is not None else 404)
        response, received, is_whole = None, b"", False
        with FUSE.armed(*(fault or (0, ""))):
            response = self.clients[who].get(paths.archive(self.slug(case)), {"file": names})
            received, is_whole = read(response) if response.streaming else (response.content, True)
        if response is None or (FUSE.is_blown and response.status_code == 503):
            return
        self.check_answer(response, may_fail=False)
        assert response.status_code == expect
        assert is_whole or FUSE.is_blown
        if expect == 200 and is_whole:
            assert int(response["Content-Length"]) == len(received)
            assert unzipped(received) == {file.filename: file.content for file in chosen or []}

    # --- Links ---

    @rule(target=LINKS, who=PERSON, case=CASES, name=NAME, fault=FAULT)
    def mint(self, who: str | None, case: int, name: str, fault: Fault) -> Any:
        file = self.state[case].files.get(SAME[name])
        expect = self.refusal(who, self.state[case]) or (201 if file else 404)
        path = paths.download(self.slug(case), name)
        return self.minted(self.attempt(lambda: self.clients[who].post(path), expect, self.state, fault=fault), case, who, file)

    @rule(target=LINKS, who=PERSON, case=CASES, names=st.lists(NAME, max_size=2), fault=FAULT)
    def mint_archive(self, who: str | None, case: int, names: list[str], fault: Fault) -> Any:
        chosen = self.chosen(case, names)
        expect = self.refusal(who, self.state[case]) or (201 if chosen is not None else 404)
        wish = {"file": names} if names else {}
        answer = self.attempt(
            lambda: self.clients[who].post(paths.archive_link(self.slug(case)), wish), expect, self.state, fault=fault
        )
        members = frozenset(file.number for file in chosen or []) if names else frozenset()
        return self.minted(answer, case, who, None, members)

    def minted(self, answer: Any, case: int, who: str | None, file: File | None, members: frozenset[int] = frozenset()) -> Any:
        if answer is None or answer.status_code != 201:
            return multiple()
        number, url = next(self.counter), answer.json()["url"]
        self.secrets.append(url.rpartition("/")[2])
        self.links[number] = Link(case, str(who), url, self.now + LINK_LIFE, file.number if file else None, members)
        return number

    @rule(number=LINKS, wanted=st.sampled_from(["get", "get", "get", "head", "resume", "resume"]), fault=FAULT)
    def use_link(self, number: int, wanted: str, fault: Fault) -> None:
        """INV-09, and everything that kills a link."""
        link = self.links[number]
        case = self.state[link.case]
        files = {file.number: file for file in case.files.values()}
        file = files.get(link.file or 0)
        is_dead = self.refusal(link.minter, case) or (link.file and not file) or not link.members <= files.keys()
        is_first = link.claimed_at is None
        expect, content = 200, file.content if file else b""
        if wanted == "resume" and file:
            expect, content = ranged(content, 1, None)
        if is_first:
            is_dead = is_dead or link.expires_at <= self.now
        else:
            may_resume = wanted == "resume" and file and expect != 200 and link.claimed_at + RESUME_LIFE >= self.now  # type: ignore[operator]
            is_dead = is_dead or not may_resume or file.version != link.version  # type: ignore[union-attr]
        expect = 404 if is_dead else expect
        if wanted == "head":
            assert self.clients[None].head(link.url).status_code == (404 if is_dead else 200)
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
        """Time moves on, and the clean-up runs, whole or killed: nobody sees it, and a second run has nothing to do (INV-20)."""
        self.clock.shift(timedelta(seconds=seconds))
        if seconds > 60:
            self.sign_in()
        with FUSE.armed(*(fault or (0, ""))):
            try:
                tick()
            except OperationalError:
                assert FUSE.is_blown
        if not FUSE.is_blown:
            before = rows()
            tick()
            assert rows() == before

    @rule(fault=FAULT)
    def purge(self, fault: Fault) -> None:
        """The grace of what was deleted is over. Broken off or not, in the end it is as if it had never been (INV-07, INV-08)."""
        self.clock.shift(timedelta(hours=25))
        with FUSE.armed(*(fault or (0, ""))), suppress(OperationalError):
            jobs.tick(now=self.now)
        if FUSE.is_blown or Upload.objects.exists():
            self.clock.shift(timedelta(minutes=10))  # whoever had it is dead
            tick()
            jobs.tick(now=self.now)
        self.sign_in()
        self.state = {number: GONE if case.is_deleted else case for number, case in self.state.items()}
        gone = Destruction.objects.filter(status=Destruction.Status.DONE)
        assert gone.count() == Destruction.objects.count()
        assert gone.exclude(why=Destruction.Why.ENDED).count() == sum(case == GONE for case in self.state.values())

    @rule(batches=st.integers(0, 4), fault=FAULT)
    def rotate(self, batches: int, fault: Fault) -> None:
        """A new master key, and a rotation that is cut short after some batches. Old keys go once nothing needs them."""
        new = f"key-{next(self.counter)} {base64.b64encode(next(self.counter).to_bytes(32, 'big')).decode()}"
        self.during.enter_context(override_settings(KEYRING=f"{current.KEYRING}\n{new}"))
        with FUSE.armed(*(fault or (0, ""))):
            try:
                list(itertools.islice(keys.rotate(now=self.now, batch=1), batches))
            except OperationalError:
                assert FUSE.is_blown
        if not Key.objects.exclude(kek_id=new.partition(" ")[0]).exists():
            before = list(Key.objects.values())
            assert list(keys.rotate(now=self.now)) == []  # INV-20
            assert list(Key.objects.values()) == before
            self.during.enter_context(override_settings(KEYRING=new))

    @rule(size=st.sampled_from([57, 64, 100, 1024]))
    def change_segment_size(self, size: int) -> None:
        self.during.enter_context(override_settings(FILES_SEGMENT_SIZE=size))


def ranged(content: bytes, first: int, last: int | None) -> tuple[int, bytes]:
    if last is not None and last < first:
        return 200, content
    part = content[first:] if last is None else content[first : last + 1]
    return (206, part) if part else (416, b"")
