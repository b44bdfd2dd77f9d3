"""Rules that create, change, replace and delete collections and files, attempted by every kind of user."""

import io
import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, multiple, rule
from rest_framework.test import APIClient

from tests.api import paths
from tests.faults.fault_injection import INJECTOR
from tests.faults.model.base import (
    ADMINS,
    COLLECTIONS,
    CONTENT,
    EQUIVALENT_NAMES,
    ETAG,
    FAULT,
    FILE_KEY,
    NAME,
    PEOPLE,
    PERSON,
    STORAGE_ROLES,
    TITLES,
    Fault,
    File,
    ModelBase,
    ModelCollection,
    State,
)


class FileRules(ModelBase):
    @initialize(target=COLLECTIONS)
    def create_initial_data(self) -> Any:
        """Gives each tenant a collection with two files."""
        made = []
        for tenant, who in ADMINS.items():
            made.append(self.create(who, tenant, TITLES[0], "AES-GCM", None))
            for twins in EQUIVALENT_NAMES[:2]:
                self.put(who, made[-1], twins[0], b"canary of the first day", "none", None, is_chunked=False)
        return multiple(*made)

    # --- Collections ---

    @rule(target=COLLECTIONS, who=PERSON, tenant=st.sampled_from(["acme", "acme", "globex", None]), title=st.sampled_from(TITLES),
          cipher=st.sampled_from(["AES-GCM", "AES-GCM", "NONE"]), fault=FAULT)  # fmt: skip
    def create(self, who: str | None, tenant: str | None, title: str, cipher: str, fault: Fault) -> Any:
        home = PEOPLE.get(who or "")
        if who is None:
            expect = 401
        elif tenant not in {home, None}:
            expect = 400
        elif self.roles[who] not in STORAGE_ROLES:
            expect = 403
        elif cipher == "NONE" and home != "acme":
            expect = 400
        else:
            taken = any((collection.tenant, collection.title) == (home, title) for collection in self.state.values())
            expect = 409 if taken else 201
        number = next(self.counter)
        after = [{**self.state, number: ModelCollection(str(home), str(who), title, {})}] if expect == 201 else []
        wish = {"display_name": title, "cipher": cipher} | ({"tenant": tenant} if tenant else {})
        self.attempt(lambda: self.clients[who].post(paths.COLLECTIONS, wish), expect, *after, fault=fault)
        self.agrees()
        return number if number in self.state else multiple()

    def manage(
        self, who: str | None, number: int, expect: int, call: Callable[[APIClient, str], Any], fault: Fault, **changes: Any
    ) -> None:
        """Sends a request that only managers may make. For a manager, it must return `expect`."""
        collection = self.state[number]
        refusal = self.collection_refusal(who, collection, deleted=True)
        expect = refusal or (403 if who and not self.manages(who, collection) else expect)
        after = [{**self.state, number: replace(collection, **changes)}] if expect < 400 else []
        self.attempt(lambda: call(self.clients[who], self.slug(number)), expect, *after, fault=fault)

    @rule(who=PERSON, collection=COLLECTIONS, title=st.sampled_from(TITLES), fault=FAULT)
    def retitle(self, who: str | None, collection: int, title: str, fault: Fault) -> None:
        mine = self.state[collection]
        others = [other for number, other in self.state.items() if number != collection]
        is_taken = any((other.tenant, other.title) == (mine.tenant, title) for other in others)
        expect = 409 if mine.is_deleted or is_taken else 200
        self.manage(
            who,
            collection,
            expect,
            lambda client, slug: client.patch(paths.collection(slug), {"display_name": title}),
            fault,
            title=title,
        )

    @rule(who=PERSON, collection=COLLECTIONS, fault=FAULT)
    def delete_collection(self, who: str | None, collection: int, fault: Fault) -> None:
        expect = 409 if self.state[collection].is_deleted or self.is_pinned(collection) else 202
        self.manage(who, collection, expect, lambda client, slug: client.delete(paths.collection(slug)), fault, is_deleted=True)

    @rule(who=PERSON, collection=COLLECTIONS, fault=FAULT)
    def restore_collection(self, who: str | None, collection: int, fault: Fault) -> None:
        expect = 200 if self.state[collection].is_deleted else 409
        self.manage(who, collection, expect, lambda client, slug: client.post(paths.restore(slug)), fault, is_deleted=False)

    # --- Uploads ---

    def condition(self, header: str, etag: str, file: File | None) -> dict[str, str]:
        if etag == "none" or (etag == "fresh" and file is None):
            return {}
        known = {"fresh": file and self.seen["etag", file.version], "stale": '"0"', "*": "*"}
        return {header: str(known[etag])}

    @rule(who=PERSON, collection=COLLECTIONS, name=NAME, content=CONTENT, etag=ETAG, is_chunked=st.booleans(), fault=FAULT)
    def put(
        self, who: str | None, collection: int, name: str, content: bytes, etag: str, fault: Fault, *, is_chunked: bool
    ) -> None:
        mine, old = self.state[collection], self.state[collection].files.get(FILE_KEY[name])
        headers = self.condition("If-Match", etag, old)
        more = {"more_files": 0 if old else 1, "more_bytes": len(content) - (len(old.content) if old else 0)}
        expect = self.collection_refusal(who, mine)
        if not expect and old:
            expect = 428 if not headers else 412 if etag == "stale" else 200
        elif not expect:
            expect = 412 if headers else 201
        if expect < 400 and (self.over_quota(self.state, mine.tenant, **more) or (old and self.is_pinned(collection, old))):
            expect = 409
        new = old or File(next(self.counter), 0, name, b"", creator=str(who))
        new = replace(new, version=next(self.counter), content=content, writer=str(who))
        after = [self.with_file(collection, new)] if expect < 400 else []
        environ: dict[str, Any] = {"CONTENT_LENGTH": str(len(content)), "CONTENT_TYPE": "text/csv"}
        if is_chunked:
            environ = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked", "CONTENT_TYPE": "text/csv"}

        def send() -> Any:
            body: dict[str, Any] = {**environ, "wsgi.input": io.BytesIO(content)}
            return self.clients[who].put(paths.content(self.slug(collection), name), headers=headers, **body)

        self.attempt(send, expect, *after, fault=fault)
        if expect < 400 and not INJECTOR.has_fired and etag != "*":  # INV-20: a repetition fails its preconditions
            self.attempt(send, 412 if headers else 428)

    @rule(
        who=PERSON,
        case=COLLECTIONS,
        parts=st.lists(st.tuples(NAME, CONTENT), min_size=1, max_size=3),
        is_named=st.booleans(),
        fault=FAULT,
    )
    def post_form(
        self, who: str | None, collection: int, parts: list[tuple[str, bytes]], fault: Fault, *, is_named: bool
    ) -> None:
        mine = self.state[collection]
        refusal = self.collection_refusal(who, mine)
        if refusal == 404 and is_named:
            refusal = 400
        files = [
            File(next(self.counter), next(self.counter), name, content, "canary notes", str(who), str(who))
            for name, content in parts
        ]

        def outcome(failing: frozenset[int]) -> tuple[State, list[int]]:
            """Returns the state after a form whose parts at these indices were interrupted, and the status of every part."""
            state, statuses = dict(self.state), []
            for index, file in enumerate(files):
                is_taken = FILE_KEY[file.filename] in state[collection].files
                is_over = self.over_quota(state, mine.tenant, more_files=1, more_bytes=len(file.content))
                statuses.append(409 if is_taken or is_over else 201)
                if statuses[-1] == 201 and index not in failing:
                    files_after = {**state[collection].files, FILE_KEY[file.filename]: file}
                    state[collection] = replace(state[collection], files=files_after)
            return state, statuses

        whole, statuses = outcome(frozenset())
        expect = refusal or (statuses[0] if len(files) == 1 else 200)
        indices = range(len(files))
        partial = [outcome(frozenset(failing))[0] for count in indices for failing in itertools.combinations(indices, count + 1)]
        after = [*partial, whole] if expect < 400 else []
        lines = ["--cut", 'Content-Disposition: form-data; name="notes"', "", "canary notes"]
        if is_named:
            lines += ["--cut", 'Content-Disposition: form-data; name="collection"', "", self.slug(collection)]
        for file in files:
            quoted = file.filename.replace('"', '\\"')
            lines += ["--cut", f'Content-Disposition: form-data; name="file"; filename="{quoted}"', "", file.content.decode()]
        body: Any = "\r\n".join([*lines, "--cut--", ""]).encode()
        path = paths.FILES if is_named else paths.files(self.slug(collection))
        kind = "multipart/form-data; boundary=cut"
        response = self.attempt(
            lambda: self.clients[who].generic("POST", path, body, content_type=kind), expect, *after, fault=fault
        )
        if expect == 200 and not INJECTOR.has_fired:
            assert [result["status"] for result in response.json()["results"]] == statuses

    # --- Files ---

    def change_file(
        self,
        who: str | None,
        collection: int,
        name: str,
        method: str,
        expect: int,
        data: Any,
        after: Callable[[File], State],
        fault: Fault,
        headers: Mapping[str, str] = {},
    ) -> None:
        """Sends a request on one file's metadata. It must return `expect` if the file exists and no egress request pins it."""
        file = self.state[collection].files.get(FILE_KEY[name])
        if expect < 400 and file and self.is_pinned(collection, file) and (method == "delete" or not has_values(file, data)):
            expect = 409
        expect = self.collection_refusal(who, self.state[collection]) or (expect if file else 404)
        states = [after(file)] if file and expect < 400 else []
        call = getattr(self.clients[who], method)
        path = paths.file(self.slug(collection), name)
        self.attempt(lambda: call(path, data, headers=headers), expect, *states, fault=fault)
        if expect < 400 and not INJECTOR.has_fired and method == "delete":
            self.attempt(lambda: call(path, data, headers=headers), 404)  # INV-20

    @rule(who=PERSON, collection=COLLECTIONS, name=NAME, new=NAME, fault=FAULT)
    def rename(self, who: str | None, collection: int, name: str, new: str, fault: Fault) -> None:
        is_taken = FILE_KEY[new] != FILE_KEY[name] and FILE_KEY[new] in self.state[collection].files
        self.change_file(
            who,
            collection,
            name,
            "patch",
            409 if is_taken else 200,
            {"filename": new},
            lambda file: self.with_file(collection, replace(file, filename=new), was=FILE_KEY[name]),
            fault,
        )

    @rule(who=PERSON, collection=COLLECTIONS, name=NAME, notes=st.sampled_from(["", "canary of notes", "Ünï ☃"]), fault=FAULT)
    def annotate(self, who: str | None, collection: int, name: str, notes: str, fault: Fault) -> None:
        self.change_file(
            who,
            collection,
            name,
            "put",
            200,
            {"notes": notes, "filename": None},
            lambda file: self.with_file(collection, replace(file, notes=notes)),
            fault,
        )

    @rule(who=PERSON, collection=COLLECTIONS, name=NAME, etag=ETAG, fault=FAULT)
    def delete_file(self, who: str | None, collection: int, name: str, etag: str, fault: Fault) -> None:
        mine = self.state[collection]
        files = {same: file for same, file in mine.files.items() if same != FILE_KEY[name]}
        headers = self.condition("If-Match", etag, mine.files.get(FILE_KEY[name]))
        self.change_file(
            who,
            collection,
            name,
            "delete",
            412 if etag == "stale" else 204,
            None,
            lambda _: {**self.state, collection: replace(mine, files=files)},
            fault,
            headers,
        )


def has_values(file: File, data: Mapping[str, str | None]) -> bool:
    """Returns whether the file has these values already."""
    return all(value in {None, getattr(file, name)} for name, value in data.items())
