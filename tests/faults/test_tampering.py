"""Objects and rows altered behind the application's back: an error or a visibly short answer, never a wrong byte (F-06..F-10).

INV-02, INV-03 and INV-05 through the API, on every way out, in a directory and in a bucket.
"""

import hashlib
import itertools
import os
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pytest_django import Settings
from rest_framework.test import APIClient

from files.http.streaming import TransferEnded
from files.models import StoredFile
from tenants.models import User
from tests import stores
from tests.api import paths
from tests.contents import random_bytes
from tests.database_guards import guards_disabled
from tests.needs import mark_dependents
from vault import crypto, keys
from vault.content import associated_data
from vault.models import Key


Api = Callable[[User | None], APIClient]
NEEDS_CEPH = pytest.mark.needs("ceph")
BUCKET = pytest.param("bucket", marks=NEEDS_CEPH)
S = 64  # bytes of a segment: 48 of plaintext, 8 in the first
SAMPLE = 150  # of the gate: from one byte that is altered to the next
# Whether each change is looked at in every way out, or in one, another each time.
EVERYWHERE = pytest.mark.parametrize(
    "everywhere", [False, pytest.param(True, marks=pytest.mark.long)], ids=["in-turn", "everywhere"]
)
CONTENT = random_bytes(1000, seed=3)
EMPTY, FULL, SIX = 0, 8 + 3 * 48, 8 + 4 * 48 + 20  # plaintext bytes: nothing, a last segment that is full, six segments
WAYS = ("content", "preview", "link", "archive")
TOLD = {(502, "object_corrupt"), (502, "object_missing"), (503, "key_unavailable"), (416, "range_not_satisfiable")}


class Objects(Protocol):
    """What somebody reaches who has the store and not the keys."""

    def read(self, key: str) -> bytes: ...

    def write(self, key: str, content: bytes) -> None: ...


class Directory:
    """A disk that rots in silence: an object keeps its time, and with it the ETag."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, key: str) -> bytes:
        return (self._root / key).read_bytes()

    def write(self, key: str, content: bytes) -> None:
        path = self._root / key
        before = path.stat()
        path.write_bytes(content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


class Bucket:
    """Whoever writes into it gives the object another ETag."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.client: Any = stores.ceph().client

    def read(self, key: str) -> bytes:
        content: bytes = self.client.get_object(Bucket=self.name, Key=key)["Body"].read()
        return content

    def write(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=content)


@pytest.fixture
def directory(db: None, settings: Settings, tmp_path: Path) -> Directory:
    settings.FILES_SEGMENT_SIZE = S
    options = {"location": str(tmp_path)}
    settings.STORAGES = settings.STORAGES | {"vault": {"BACKEND": "vault.stores.local.LocalStore", "OPTIONS": options}}
    return Directory(tmp_path)


@pytest.fixture
@mark_dependents(NEEDS_CEPH)
def bucket(db: None, settings: Settings) -> Iterator[Bucket]:
    settings.FILES_SEGMENT_SIZE = S
    with stores.use_new_buckets(stores.ceph(), settings) as names:
        yield Bucket(names["vault"])


@pytest.fixture
def objects(request: pytest.FixtureRequest) -> Objects:
    made: Objects = request.getfixturevalue(request.param)
    return made


class Victim:
    """A file, and every way to its bytes."""

    def __init__(self, client: APIClient, length: int, *, name: str = "a.bin", slug: str = "", shift: int = 0) -> None:
        self.client, self.name, self.length = client, name, length
        self.turns = itertools.cycle(WAYS)
        self.slug = slug or str(client.post(paths.COLLECTIONS, {"display_name": f"November {random.random()}"}).json()["id"])
        self.put(shift)

    def put(self, shift: int = 0, **headers: str) -> None:
        self.content = CONTENT[shift : shift + self.length]
        address = paths.content(self.slug, self.name)
        answer = self.client.put(address, self.content, content_type="application/octet-stream", headers=headers)
        assert answer.status_code in {200, 201}, answer.content
        self.row = StoredFile.objects.get(collection__slug=self.slug, filename=self.name)

    def whole(self, ways: Sequence[str] = WAYS) -> list[tuple[Any, int]]:
        """Answers that end well only if all of it is right, each with how far into the content it starts."""
        return [(self.get(way), -1 if way == "archive" else 0) for way in ways]

    def get(self, way: str) -> Any:
        if way == "content":
            return self.client.get(paths.content(self.slug, self.name))
        if way == "preview":
            return self.client.get(paths.preview(self.slug, self.name))
        if way == "archive":
            return self.client.get(paths.archive(self.slug), {"file": self.name})
        return APIClient().get(self.client.post(paths.download(self.slug, self.name), {}).json()["url"])

    def parts(self) -> list[tuple[Any, int]]:
        """The first segment, one in the middle and one across an end, and the last byte."""
        ranges = [(0, "0-7"), (60, "60-99"), (self.length - 1, f"{self.length - 1}-")] if self.length else []
        address = paths.content(self.slug, self.name)
        return [(self.client.get(address, headers={"Range": f"bytes={part}"}), start) for start, part in ranges]

    def ends_well(self, answer: Any, start: int) -> bool:
        """Whether this answer claims to be right. Whatever of it arrived has to be."""
        if answer.status_code not in {200, 206}:
            told = answer.json()
            assert answer["Content-Type"] == "application/problem+json"
            assert (answer.status_code, told["code"]) in TOLD, told
            return False
        arrived, is_whole = b"", True
        try:
            for piece in answer.streaming_content:
                arrived += piece
        except TransferEnded:
            is_whole = False
        assert is_whole == (len(arrived) == int(answer["Content-Length"]))
        if start < 0:
            arrived, start = first_member_of(arrived)[: self.length], 0
        assert self.content[start : start + len(arrived)] == arrived
        return is_whole

    def assert_intact(self) -> None:
        assert all(self.ends_well(*answer) for answer in [*self.whole(), *self.parts()])

    def assert_told(self, *, everywhere: bool = True) -> None:
        """No way out hides that something is wrong with it, and no part of it is a wrong one. Or one way, another each time."""
        ways = WAYS if everywhere else [next(self.turns)]
        assert [self.ends_well(*answer) for answer in self.whole(ways)] == [False] * len(ways)
        for answer in self.parts() if everywhere else []:
            self.ends_well(*answer)


def first_member_of(archive: bytes) -> bytes:
    """What follows the first local header of a zip, as far as it arrived."""
    if len(archive) < 30:
        return b""
    name, extra = struct.unpack_from("<HH", archive, 26)
    return archive[30 + name + extra :]


@contextmanager
def altered(objects: Objects, key: str, content: bytes) -> Iterator[None]:
    before = objects.read(key)
    assert content != before
    objects.write(key, content)
    yield
    objects.write(key, before)


# --- Objects ---


def flips(sealed: bytes, step: int) -> Iterator[bytes]:
    for at in range(0, len(sealed), step):
        yield sealed[:at] + bytes([sealed[at] ^ (1 << at % 8)]) + sealed[at + 1 :]


def cuts(sealed: bytes, step: int) -> Iterator[bytes]:
    yield from (sealed[:size] for size in range(0, len(sealed), step))


def moves(sealed: bytes, step: int) -> Iterator[bytes]:
    """Segments swapped, dropped, doubled, and one in place of another; the first has the header."""
    segments = [sealed[start : start + S] for start in range(0, len(sealed), S)]
    pairs = list(itertools.combinations(range(len(segments)), 2))
    for one, other in pairs if step < SAMPLE else pairs[::7]:
        swapped = segments.copy()
        swapped[one], swapped[other] = swapped[other], swapped[one]
        yield b"".join(swapped)
        yield b"".join([*segments[:other], segments[one], *segments[other + 1 :]])
    for index in range(len(segments)) if step < SAMPLE else {0, len(segments) // 2, len(segments) - 1}:
        yield b"".join(segments[:index] + segments[index + 1 :])
        yield b"".join(segments[: index + 1] + segments[index:])


def extensions(sealed: bytes, _: int) -> Iterator[bytes]:
    """C-3: stock Tink reads no further than a last segment that is full."""
    yield from (sealed + tail for tail in (b"\0", bytes(15), bytes(16), bytes(S), sealed[-S:], sealed))


def others(sealed: bytes, _: int) -> Iterator[bytes]:
    yield from (bytes(len(sealed)), b"<html>502 Bad Gateway</html>".ljust(len(sealed)), os.urandom(len(sealed)))


def thorough(objects: str, length: int, step: int, *marks: pytest.MarkDecorator) -> Any:
    return pytest.param(objects, length, step, marks=[pytest.mark.long, pytest.mark.timeout(600), *marks])


@pytest.mark.parametrize("damage", [flips, cuts, moves, extensions, others])
@pytest.mark.parametrize(
    ("objects", "length", "step"),
    [
        ("directory", FULL, SAMPLE),
        pytest.param("bucket", FULL, SAMPLE, marks=NEEDS_CEPH),
        thorough("directory", EMPTY, 1),
        thorough("directory", EMPTY, 17),
        thorough("directory", FULL, 1),
        thorough("directory", SIX, 3),
        thorough("directory", SIX, 53),
        thorough("bucket", FULL, 101, NEEDS_CEPH),
        thorough("bucket", SIX, 4, NEEDS_CEPH),
    ],
    indirect=["objects"],
)
def test_download_of_an_altered_object_shows_no_wrong_byte(
    api: Api, alice: User, objects: Objects, step: int, length: int, damage: Callable[[bytes, int], Iterator[bytes]]
) -> None:
    victim = Victim(api(alice), length)
    victim.assert_intact()
    for number, content in enumerate(damage(objects.read(victim.row.object_key), step)):
        with altered(objects, victim.row.object_key, content):
            victim.assert_told(everywhere=step < SAMPLE or number == 0)
    victim.assert_intact()


def forged(victim: Victim, *sealed: tuple[int, int, bool]) -> bytes:
    """An object as only a holder of the key can make it: header, and segments of content [start, stop), each the last or not."""
    row, collection = victim.row, victim.row.collection
    aad = associated_data(row)
    salt, commitment, header = bytes(row.key_salt), bytes(row.key_commitment), bytes(row.header)
    key = crypto.recover_file_key(keys.unwrap(collection.key), key_salt=salt, aad=aad, commitment=commitment)
    aead = AESGCM(crypto.hkdf(key.material, salt=header[1 : 1 + crypto.SALT_SIZE], info=aad, length=crypto.KEY_SIZE))
    prefix = header[1 + crypto.SALT_SIZE :]
    return header + b"".join(
        aead.encrypt(crypto.segment_nonce(prefix, index, last=last), victim.content[start:stop], None)
        for index, (start, stop, last) in enumerate(sealed)
    )


@EVERYWHERE
@pytest.mark.parametrize("objects", ["directory", BUCKET], indirect=True)
def test_authentic_segments_that_are_not_this_content_are_told(
    api: Api, alice: User, objects: Objects, *, everywhere: bool
) -> None:
    """C-3: every tag is right, and the content ends earlier, later, or with an empty segment behind a full one."""
    victim = Victim(api(alice), FULL)
    key = victim.row.object_key
    ends = [(0, 8), (8, 56), (56, 104), (104, 152)]
    assert forged(victim, *((*end, end[1] == FULL) for end in ends)) == objects.read(key)  # or this would show nothing
    with_empty_end = [*((*end, False) for end in ends), (152, 152, True)]
    shorter = [(0, 8, False), (8, 56, False), (56, 104, True)]
    never_last = [(*end, False) for end in ends]
    all_last = [(*end, True) for end in ends]
    goes_on = [*((*end, end[1] == FULL) for end in ends), (0, 48, True)]
    for segments in (with_empty_end, shorter, never_last, all_last, goes_on):
        with altered(objects, key, forged(victim, *segments)):
            victim.assert_told(everywhere=everywhere or segments is with_empty_end)
    victim.assert_intact()


@EVERYWHERE
@pytest.mark.parametrize(
    ("objects", "length"),
    [("directory", EMPTY), ("directory", SIX), pytest.param("bucket", SIX, marks=NEEDS_CEPH)],
    indirect=["objects"],
)
def test_object_of_another_content_is_told(
    api: Api, alice: User, mallory: User, objects: Objects, length: int, *, everywhere: bool
) -> None:
    """F-08, INV-05: with its row's header, salt and commitment, too."""
    client = api(alice)
    older = Victim(client, length)
    replayed = objects.read(older.row.object_key)
    victim = Victim.__new__(Victim)
    victim.__dict__.update(older.__dict__)
    victim.put(shift=5, if_match="*")
    same_collection = Victim(client, length, name="b.bin", slug=victim.slug, shift=7)
    strangers = [same_collection, Victim(client, length, shift=9), Victim(api(mallory), length, shift=11)]
    sources = [(older.row, replayed), *((other.row, objects.read(other.row.object_key)) for other in strangers)]
    row = StoredFile.objects.filter(pk=victim.row.pk)
    own = row.values("header", "key_salt", "key_commitment")[0]
    for source, content in sources:
        with altered(objects, victim.row.object_key, content):
            victim.assert_told(everywhere=everywhere)
            row.update(header=source.header, key_salt=source.key_salt)
            victim.assert_told(everywhere=everywhere)
            row.update(key_commitment=source.key_commitment)
            victim.assert_told(everywhere=everywhere)
            row.update(**own)
    victim.assert_intact()


def test_older_version_of_an_object_that_was_made_current_is_told(api: Api, alice: User, bucket: Bucket) -> None:
    """F-08, F-18: and a marker that hides it is a lost object; without both it is what it was."""
    bucket.client.put_bucket_versioning(Bucket=bucket.name, VersioningConfiguration={"Status": "Enabled"})
    older = Victim(api(alice), SIX)
    replayed = older.row.object_key
    older.put(shift=5, if_match="*")
    place: Any = {"Bucket": bucket.name, "Key": older.row.object_key}
    version = bucket.client.put_object(**place, Body=bucket.read(replayed))["VersionId"]
    older.assert_told()
    bucket.client.delete_object(**place, VersionId=version)
    older.assert_intact()

    marker = bucket.client.delete_object(**place)["VersionId"]
    older.assert_told()
    assert StoredFile.objects.get().status == StoredFile.Status.MISSING
    bucket.client.delete_object(**place, VersionId=marker)
    older.assert_intact()
    assert StoredFile.objects.get().status == StoredFile.Status.READY


# --- Rows ---


def bent(value: bytes, step: int) -> list[bytes]:
    return [*flips(value, step), value[:-1], value + b"\0", b""]


@pytest.mark.parametrize("step", [31, pytest.param(1, marks=[pytest.mark.long, pytest.mark.timeout(600)], id="every-byte")])
@pytest.mark.parametrize(
    "field", ["header", "key_salt", "key_commitment", "segment_size", "length", "cipher", "uuid", "object_id"]
)
def test_row_with_another_value_shows_no_wrong_byte(api: Api, alice: User, directory: Directory, field: str, step: int) -> None:
    """Whoever alters the database without the application gets errors out of it, and the truth back with the old value."""
    victim = Victim(api(alice), SIX)
    row = StoredFile.objects.filter(pk=victim.row.pk)
    before = getattr(victim.row, field)
    values: dict[str, list[Any]] = {
        "segment_size": [1, 57, S - 1, S + 1, 2 * S, 2**31 - 1],
        "length": [0, 8, SIX - 1, SIX + 1, SIX + 48, victim.row.object_size, 2**40],
        "cipher": ["NONE", "none", "AES-CTR", ""],
        "uuid": [victim.row.object_id],
        "object_id": [victim.row.uuid],
    }
    for number, value in enumerate(values.get(field) or bent(bytes(before), step)):
        row.update(**{field: value})
        victim.assert_told(everywhere=step == 1 or number == 0)
    row.update(**{field: before})
    victim.assert_intact()


@pytest.mark.parametrize("is_planted", [False, True])
@pytest.mark.parametrize("objects", ["directory", BUCKET], indirect=True)
def test_row_whose_cipher_was_taken_away_yields_nothing(api: Api, alice: User, objects: Objects, *, is_planted: bool) -> None:
    """INV-03: ciphertext, or bytes that somebody planted, under a row that says that this is all there is to it."""
    victim = Victim(api(alice), SIX)
    key, row = victim.row.object_key, StoredFile.objects.filter(pk=victim.row.pk)
    before = row.values("cipher", "length", "sha256", "object_size", "object_etag", "header")[0]
    content = b"planted" * 20 if is_planted else objects.read(key)
    if is_planted:
        objects.write(key, content)
    sha256 = hashlib.sha256(content).hexdigest()
    row.update(cipher="NONE", length=len(content), sha256=sha256, object_size=len(content), object_etag="", header=b"")
    victim.assert_told()
    row.update(**before)
    assert is_planted or all(victim.ends_well(*answer) for answer in victim.whole())


@EVERYWHERE
def test_row_and_object_that_were_cut_together_are_told(api: Api, alice: User, directory: Directory, *, everywhere: bool) -> None:
    """F-09: at the end of a segment, so that every size fits; only the tag of a last segment tells."""
    victim = Victim(api(alice), SIX)
    key, row = victim.row.object_key, StoredFile.objects.filter(pk=victim.row.pk)
    sealed = directory.read(key)
    for segments in range(1, 6):
        row.update(length=8 + 48 * (segments - 1), object_size=segments * S)
        with altered(directory, key, sealed[: segments * S]):
            victim.assert_told(everywhere=everywhere or segments == 1)
    row.update(length=SIX, object_size=len(sealed))
    victim.assert_intact()


@EVERYWHERE
def test_collection_key_that_was_altered_or_exchanged_opens_nothing(
    api: Api, alice: User, mallory: User, directory: Directory, *, everywhere: bool
) -> None:
    victim, other = Victim(api(alice), SIX), Victim(api(mallory), SIX)
    own, foreign = victim.row.collection.key, other.row.collection.key
    changes: list[dict[str, Any]] = [{"wrapped": foreign.wrapped}, {"kek_id": "another"}, {"owner": "nobody"}]
    for change in [*changes, *({"wrapped": wrapped} for wrapped in bent(bytes(own.wrapped or b""), 13))]:
        with guards_disabled():
            Key.objects.filter(pk=own.pk).update(**change)
        victim.assert_told(everywhere=everywhere or change == changes[0])
        with guards_disabled():
            Key.objects.filter(pk=own.pk).update(wrapped=own.wrapped, kek_id=own.kek_id, owner=own.owner)
    victim.assert_intact()
