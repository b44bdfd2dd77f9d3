"""Objects and rows are altered without the application: an error or a visibly short response, never a wrong byte (F-06..F-10).

INV-02, INV-03 and INV-05 through the API, for every kind of download, with objects in a directory and in a bucket.
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
SAMPLE_STEP = 150  # the gate alters every 150th byte
# Whether a test checks each change with every kind of download, or with one kind, in turn.
EVERYWHERE = pytest.mark.parametrize(
    "everywhere", [False, pytest.param(True, marks=pytest.mark.long)], ids=["in-turn", "everywhere"]
)
CONTENT = random_bytes(1000, seed=3)
EMPTY, FULL, SIX = 0, 8 + 3 * 48, 8 + 4 * 48 + 20  # plaintext bytes: nothing, a last segment that is full, six segments
DOWNLOADS = ("content", "preview", "link", "archive")
EXPECTED_ERRORS = {(502, "object_corrupt"), (502, "object_missing"), (503, "key_unavailable"), (416, "range_not_satisfiable")}


class Objects(Protocol):
    """The access of an attacker who has the store, but not the keys."""

    def read(self, key: str) -> bytes: ...

    def write(self, key: str, content: bytes) -> None: ...


class Directory:
    """Silent corruption on a disk: an altered object keeps its modification time and therefore its ETag."""

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
    """A bucket of the real S3 server: an altered object gets another ETag."""

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
    """A file, and every kind of download of its bytes."""

    def __init__(self, client: APIClient, length: int, *, name: str = "a.bin", slug: str = "", shift: int = 0) -> None:
        self.client, self.name, self.length = client, name, length
        self.turns = itertools.cycle(DOWNLOADS)
        self.slug = slug or str(client.post(paths.COLLECTIONS, {"display_name": f"November {random.random()}"}).json()["id"])
        self.put(shift)

    def put(self, shift: int = 0, **headers: str) -> None:
        self.content = CONTENT[shift : shift + self.length]
        address = paths.content(self.slug, self.name)
        answer = self.client.put(address, self.content, content_type="application/octet-stream", headers=headers)
        assert answer.status_code in {200, 201}, answer.content
        self.row = StoredFile.objects.get(collection__slug=self.slug, filename=self.name)

    def full_responses(self, kinds: Sequence[str] = DOWNLOADS) -> list[tuple[Any, int]]:
        """Returns responses that cover the whole file, each with its offset in the content (-1 for an archive)."""
        return [(self.get(kind), -1 if kind == "archive" else 0) for kind in kinds]

    def get(self, kind: str) -> Any:
        if kind == "content":
            return self.client.get(paths.content(self.slug, self.name))
        if kind == "preview":
            return self.client.get(paths.preview(self.slug, self.name))
        if kind == "archive":
            return self.client.get(paths.archive(self.slug), {"file": self.name})
        return APIClient().get(self.client.post(paths.download(self.slug, self.name), {}).json()["url"])

    def range_responses(self) -> list[tuple[Any, int]]:
        """Returns range responses with their offsets: the first segment, the middle, a segment boundary, and the last byte."""
        ranges = [(0, "0-7"), (60, "60-99"), (self.length - 1, f"{self.length - 1}-")] if self.length else []
        address = paths.content(self.slug, self.name)
        return [(self.client.get(address, headers={"Range": f"bytes={part}"}), start) for start, part in ranges]

    def is_complete(self, answer: Any, start: int) -> bool:
        """Returns whether the response is complete. Asserts that its bytes are right, or that it is an expected error."""
        if answer.status_code not in {200, 206}:
            problem = answer.json()
            assert answer["Content-Type"] == "application/problem+json"
            assert (answer.status_code, problem["code"]) in EXPECTED_ERRORS, problem
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
        assert all(self.is_complete(*answer) for answer in [*self.full_responses(), *self.range_responses()])

    def assert_detected(self, *, everywhere: bool = True) -> None:
        """Asserts that every kind of download (or one kind, in turn) fails visibly, and that no range has wrong bytes."""
        kinds = DOWNLOADS if everywhere else [next(self.turns)]
        assert [self.is_complete(*answer) for answer in self.full_responses(kinds)] == [False] * len(kinds)
        for answer in self.range_responses() if everywhere else []:
            self.is_complete(*answer)


def first_member_of(archive: bytes) -> bytes:
    """Returns the received bytes after the first local header of a zip."""
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
    """Yields objects with segments swapped, dropped, duplicated or overwritten by another; the first contains the header."""
    segments = [sealed[start : start + S] for start in range(0, len(sealed), S)]
    pairs = list(itertools.combinations(range(len(segments)), 2))
    for one, other in pairs if step < SAMPLE_STEP else pairs[::7]:
        swapped = segments.copy()
        swapped[one], swapped[other] = swapped[other], swapped[one]
        yield b"".join(swapped)
        yield b"".join([*segments[:other], segments[one], *segments[other + 1 :]])
    for index in range(len(segments)) if step < SAMPLE_STEP else {0, len(segments) // 2, len(segments) - 1}:
        yield b"".join(segments[:index] + segments[index + 1 :])
        yield b"".join(segments[: index + 1] + segments[index:])


def extensions(sealed: bytes, _: int) -> Iterator[bytes]:
    """Yields objects with appended bytes (C-3: unmodified Tink stops reading at a last segment that is full)."""
    yield from (sealed + tail for tail in (b"\0", bytes(15), bytes(16), bytes(S), sealed[-S:], sealed))


def replacements(sealed: bytes, _: int) -> Iterator[bytes]:
    yield from (bytes(len(sealed)), b"<html>502 Bad Gateway</html>".ljust(len(sealed)), os.urandom(len(sealed)))


def long_case(objects: str, length: int, step: int, *marks: pytest.MarkDecorator) -> Any:
    return pytest.param(objects, length, step, marks=[pytest.mark.long, pytest.mark.timeout(600), *marks])


@pytest.mark.parametrize("damage", [flips, cuts, moves, extensions, replacements])
@pytest.mark.parametrize(
    ("objects", "length", "step"),
    [
        ("directory", FULL, SAMPLE_STEP),
        pytest.param("bucket", FULL, SAMPLE_STEP, marks=NEEDS_CEPH),
        long_case("directory", EMPTY, 1),
        long_case("directory", EMPTY, 17),
        long_case("directory", FULL, 1),
        long_case("directory", SIX, 3),
        long_case("directory", SIX, 53),
        long_case("bucket", FULL, 101, NEEDS_CEPH),
        long_case("bucket", SIX, 4, NEEDS_CEPH),
    ],
    indirect=["objects"],
)
def test_download_of_an_altered_object_has_no_wrong_byte(
    api: Api, alice: User, objects: Objects, step: int, length: int, damage: Callable[[bytes, int], Iterator[bytes]]
) -> None:
    victim = Victim(api(alice), length)
    victim.assert_intact()
    for number, content in enumerate(damage(objects.read(victim.row.object_key), step)):
        with altered(objects, victim.row.object_key, content):
            victim.assert_detected(everywhere=step < SAMPLE_STEP or number == 0)
    victim.assert_intact()


def forged(victim: Victim, *sealed: tuple[int, int, bool]) -> bytes:
    """Makes an object with the real key: the header, and a segment for each (start, stop, whether it is marked as the last)."""
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
def test_authentic_segments_of_wrong_content_are_detected(api: Api, alice: User, objects: Objects, *, everywhere: bool) -> None:
    """C-3: every tag is right, but the content ends too early, too late, or with an empty segment after a full one."""
    victim = Victim(api(alice), FULL)
    key = victim.row.object_key
    ends = [(0, 8), (8, 56), (56, 104), (104, 152)]
    assert forged(victim, *((*end, end[1] == FULL) for end in ends)) == objects.read(key)  # the forgery itself works
    with_empty_end = [*((*end, False) for end in ends), (152, 152, True)]
    shorter = [(0, 8, False), (8, 56, False), (56, 104, True)]
    never_last = [(*end, False) for end in ends]
    all_last = [(*end, True) for end in ends]
    goes_on = [*((*end, end[1] == FULL) for end in ends), (0, 48, True)]
    for segments in (with_empty_end, shorter, never_last, all_last, goes_on):
        with altered(objects, key, forged(victim, *segments)):
            victim.assert_detected(everywhere=everywhere or segments is with_empty_end)
    victim.assert_intact()


@EVERYWHERE
@pytest.mark.parametrize(
    ("objects", "length"),
    [("directory", EMPTY), ("directory", SIX), pytest.param("bucket", SIX, marks=NEEDS_CEPH)],
    indirect=["objects"],
)
def test_object_of_another_content_is_detected(
    api: Api, alice: User, mallory: User, objects: Objects, length: int, *, everywhere: bool
) -> None:
    """F-08, INV-05: also with the header, salt and commitment from the row of the other content."""
    client = api(alice)
    older = Victim(client, length)
    replayed = objects.read(older.row.object_key)
    victim = Victim.__new__(Victim)
    victim.__dict__.update(older.__dict__)
    victim.put(shift=5, if_match="*")
    same_collection = Victim(client, length, name="b.bin", slug=victim.slug, shift=7)
    others = [same_collection, Victim(client, length, shift=9), Victim(api(mallory), length, shift=11)]
    sources = [(older.row, replayed), *((other.row, objects.read(other.row.object_key)) for other in others)]
    row = StoredFile.objects.filter(pk=victim.row.pk)
    own = row.values("header", "key_salt", "key_commitment")[0]
    for source, content in sources:
        with altered(objects, victim.row.object_key, content):
            victim.assert_detected(everywhere=everywhere)
            row.update(header=source.header, key_salt=source.key_salt)
            victim.assert_detected(everywhere=everywhere)
            row.update(key_commitment=source.key_commitment)
            victim.assert_detected(everywhere=everywhere)
            row.update(**own)
    victim.assert_intact()


def test_older_version_made_current_is_detected(api: Api, alice: User, bucket: Bucket) -> None:
    """F-08, F-18: a delete marker makes the object missing; removing the version or the marker restores the file."""
    bucket.client.put_bucket_versioning(Bucket=bucket.name, VersioningConfiguration={"Status": "Enabled"})
    older = Victim(api(alice), SIX)
    replayed = older.row.object_key
    older.put(shift=5, if_match="*")
    place: Any = {"Bucket": bucket.name, "Key": older.row.object_key}
    version = bucket.client.put_object(**place, Body=bucket.read(replayed))["VersionId"]
    older.assert_detected()
    bucket.client.delete_object(**place, VersionId=version)
    older.assert_intact()

    marker = bucket.client.delete_object(**place)["VersionId"]
    older.assert_detected()
    assert StoredFile.objects.get().status == StoredFile.Status.MISSING
    bucket.client.delete_object(**place, VersionId=marker)
    older.assert_intact()
    assert StoredFile.objects.get().status == StoredFile.Status.READY


# --- Rows ---


def corruptions(value: bytes, step: int) -> list[bytes]:
    return [*flips(value, step), value[:-1], value + b"\0", b""]


@pytest.mark.parametrize("step", [31, pytest.param(1, marks=[pytest.mark.long, pytest.mark.timeout(600)], id="every-byte")])
@pytest.mark.parametrize(
    "field", ["header", "key_salt", "key_commitment", "segment_size", "length", "cipher", "uuid", "object_id"]
)
def test_download_with_an_altered_row_has_no_wrong_byte(
    api: Api, alice: User, directory: Directory, field: str, step: int
) -> None:
    """Altered values cause errors; restoring the old value restores the file."""
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
    for number, value in enumerate(values.get(field) or corruptions(bytes(before), step)):
        row.update(**{field: value})
        victim.assert_detected(everywhere=step == 1 or number == 0)
    row.update(**{field: before})
    victim.assert_intact()


@pytest.mark.parametrize("is_planted", [False, True])
@pytest.mark.parametrize("objects", ["directory", BUCKET], indirect=True)
def test_row_with_cipher_removed_yields_no_bytes(api: Api, alice: User, objects: Objects, *, is_planted: bool) -> None:
    """INV-03: the row claims that the object, ciphertext or planted bytes, is the plaintext."""
    victim = Victim(api(alice), SIX)
    key, row = victim.row.object_key, StoredFile.objects.filter(pk=victim.row.pk)
    before = row.values("cipher", "length", "sha256", "object_size", "object_etag", "header")[0]
    content = b"planted" * 20 if is_planted else objects.read(key)
    if is_planted:
        objects.write(key, content)
    sha256 = hashlib.sha256(content).hexdigest()
    row.update(cipher="NONE", length=len(content), sha256=sha256, object_size=len(content), object_etag="", header=b"")
    victim.assert_detected()
    row.update(**before)
    assert is_planted or all(victim.is_complete(*answer) for answer in victim.full_responses())


@EVERYWHERE
def test_row_and_object_truncated_together_are_detected(api: Api, alice: User, directory: Directory, *, everywhere: bool) -> None:
    """F-09: truncated at the end of a segment, so that all sizes agree; only the tag of the last segment is wrong."""
    victim = Victim(api(alice), SIX)
    key, row = victim.row.object_key, StoredFile.objects.filter(pk=victim.row.pk)
    sealed = directory.read(key)
    for segments in range(1, 6):
        row.update(length=8 + 48 * (segments - 1), object_size=segments * S)
        with altered(directory, key, sealed[: segments * S]):
            victim.assert_detected(everywhere=everywhere or segments == 1)
    row.update(length=SIX, object_size=len(sealed))
    victim.assert_intact()


@EVERYWHERE
def test_altered_or_exchanged_collection_key_decrypts_no_file(
    api: Api, alice: User, mallory: User, directory: Directory, *, everywhere: bool
) -> None:
    victim, other = Victim(api(alice), SIX), Victim(api(mallory), SIX)
    own, foreign = victim.row.collection.key, other.row.collection.key
    changes: list[dict[str, Any]] = [{"wrapped": foreign.wrapped}, {"kek_id": "another"}, {"owner": "nobody"}]
    for change in [*changes, *({"wrapped": wrapped} for wrapped in corruptions(bytes(own.wrapped or b""), 13))]:
        with guards_disabled():
            Key.objects.filter(pk=own.pk).update(**change)
        victim.assert_detected(everywhere=everywhere or change == changes[0])
        with guards_disabled():
            Key.objects.filter(pk=own.pk).update(wrapped=own.wrapped, kek_id=own.kek_id, owner=own.owner)
    victim.assert_intact()
