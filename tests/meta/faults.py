"""The list of invariants (INV) and faults (F) that tests cite by number; generates docs/faults.md with the tests of each."""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final


ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = ROOT / "docs" / "faults.md"
CITED: Final = re.compile(r"\b(INV|F)-(\d\d)(?:\.\.(?:INV|F)-(\d\d))?")

INVARIANTS: Final = """
01 A response to one tenant contains no id, name, byte or count of another.
02 The bytes of a complete response are the uploaded bytes; any other response ends visibly short or is an error.
03 Plaintext leaves only after its authentication.
04 No pair of key and nonce is used twice.
05 A segment decrypts only at its own position in its own version of its own file, collection and tenant.
06 Every file has its object, of the recorded size; a row refers to every object.
07 After a purge, no object or version exists under the collection's prefix, and its key is destroyed.
08 No operation makes a destroyed key or a purged collection readable again.
09 A link is redeemed at most once, across all processes.
10 A release requires approvals by different users who had the right to approve at that time and still have it.
11 The released files are the approved files.
12 A request follows only listed transitions.
13 A request has one outcome and at most one package.
14 Every security-relevant action writes exactly one audit row, in the transaction of the change; rows are append-only.
15 Logs, temporary files, object keys and metadata contain no plaintext, key, token or filename.
16 The loss of a right takes effect on the next request, and on running streams within seconds.
17 No input causes an unhandled error; errors have one format and expose no internals.
18 The counters of a quota match the stored files after any crash or race.
19 Memory, descriptors, connections and slots are released after any number of broken transfers.
20 Repeating an idempotent request or task changes nothing.
"""

FAULTS: Final = """
01 The store throttles or fails: a few retries, then 503 with Retry-After; no partial data remains.
02 The store performs a request and the response is lost: one object.
03 The store refuses connections, or its name or certificate is invalid: 503 within seconds; `/readyz` reports it.
04 The store stops responding: the wait is limited, then the thread is free again.
05 The connection to the store breaks at the start, in the middle or at the last byte: the download resumes or ends short.
06 The store returns too little, too much or an HTML page: never accepted as content.
07 Any byte of an object or of its row is altered: never wrong plaintext.
08 Segments or objects are swapped, or an older version is replayed: never decrypted.
09 Segments are dropped, duplicated or added: never decrypted.
10 An object is missing: 502 before the first byte; the row is marked `missing` and kept.
11 The store denies access: no repeated attempts.
12 A part of an upload fails: the upload is aborted.
13 The outcome of completing a multipart upload is unknown: the object itself decides.
14 A kill during an upload: its leftovers are removed.
15 An upload needs more parts than S3 allows: part sizes grow.
16 Copies above 5 GiB for staging.
17 A deletion fails in part: the rest is retried until the listing is empty.
18 Versioned and locked buckets in a purge.
19 A listing is incomplete: an error, never taken as complete.
20 Wrong or empty bucket, old database: the sweep refuses to run.
21 The store rejects boto3's additional checksums: both settings work.
22 The database fails between the object and its row: the client gets an error or an unknown outcome; no orphaned object remains.
23 The database fails during a download: the download continues without it for a limited time. No download holds a connection.
24 The response to a COMMIT is lost: the row is read back.
25 Deadlock, serialization failure, locked database: a few retries, then 503.
26 A worker is killed between two steps: the next one converges.
27 Packaging is killed.
28 The server is stopped during transfers: they complete, or are cut cleanly.
29 A kill between COMMIT and a task: nothing is enqueued; ticks find the rows.
30 The broker is unavailable or loses its data: no work is lost.
31 A tick is delivered twice, late or out of order: a lease decides.
32 Two beats, a dead beat, a tick longer than its period: a lease decides.
33 Purges and a deletion in parallel.
34 The mail server is down, slow or rejects a mail: the reported change stays in effect, and the mail is delivered later, once.
35 The disk is full or read-only: transfers to S3 need no disk; other requests get 503, with no partial changes.
36 Descriptors, threads or database connections run out: 503 or a refused connection, and recovery without a restart.
37 A migration while old processes run: it only adds, and no request fails.
38 Sizes at every boundary, and above the limit: exact round trip, or 413.
39 Wrong or missing lengths, both framings, Expect, compressed bodies: 4xx, no hang.
40 Hostile filenames: rejected, or stored exactly and served safely.
41 Hostile JSON: 4xx, quickly.
42 Hostile forms: 4xx, in constant memory.
43 Hostile queries: 4xx.
44 Hostile headers: rejected or ignored.
45 Ranges of every kind: responses follow RFC 9110, at the cost of the bytes sent.
46 Slow, stalled and trickling clients: disconnected, without delay for other clients.
47 Clients that disconnect at any point: all resources are released.
48 Tokens that are expired, forged or of another type: 401.
49 Users who are deactivated or lose a role meanwhile: denied.
50 Every object of another tenant, by every method: 404.
51 A one-off link used in parallel, late, by HEAD, or after its file or creator is gone: one 200, otherwise the same 404.
52 Simultaneous decisions.
53 Roles that change during a review.
54 Files that change between approval and packaging.
55 More downloads of a package than allowed, in parallel.
56 The release bucket fails.
57 A collection expires during a review.
58 Simultaneous uploads of one name: one succeeds, the others get an error, and no surplus object remains.
59 Key rotation while files are read, written and replaced, run twice in parallel, killed midway: no data is lost.
60 Deletion of 100,000 files.
61 Immutable rows, written without the application: rejected by the database.
62 Exports that a spreadsheet would execute, or that are long: neutralised, in constant memory, visibly cut on failure.
63 A database backup from before a purge.
64 Bucket and database from different days.
65 The clock jumps forward: no deletion without confirmation by the vault's clock, and at most the daily limit.
66 Canaries of plaintext, tokens, names and keys: found only in their own columns.
67 A master key that is wrong, missing or readable by other users: refused, or 503; never a second key.
68 Secrets of another installation.
69 Log injection: one JSON line.
70 Counters that drifted.
"""


def rows(text: str) -> Iterator[tuple[int, str]]:
    """Yields the number and the description of each entry."""
    for line in text.strip().splitlines():
        number, description = line.split(maxsplit=1)
        yield int(number), description


def citations() -> dict[tuple[str, int], list[str]]:
    """Maps kind and number to the files in tests/ that cite it."""
    found: dict[tuple[str, int], set[str]] = defaultdict(set)
    for path in (ROOT / "tests").rglob("test_*.py"):
        for kind, first, last in CITED.findall(path.read_text()):
            for number in range(int(first), int(last or first) + 1):
                found[kind, number].add(str(path.relative_to(ROOT / "tests")))
    return {key: sorted(files) for key, files in found.items()}


def page() -> str:
    """Returns the content of docs/faults.md."""
    cited = citations()
    tables = []
    for kind, title, text in (("INV", "Invariants", INVARIANTS), ("F", "Faults", FAULTS)):
        lines = [
            f"| {kind}-{number:02} | {description} | {', '.join(cited.get((kind, number), []))} |"
            for number, description in rows(text)
        ]
        tables.append(f"## {title}\n\n| Number | Description | Tests in `tests/` |\n|---|---|---|\n" + "\n".join(lines))
    return INTRODUCTION + "\n\n".join(tables) + "\n"


INTRODUCTION: Final = """\
<!-- Generated. To update it: .venv/bin/python -m tests.meta.faults > docs/faults.md -->

# Invariants and faults

This page lists the invariants (INV), which hold at all times, the faults (F) that the system tolerates, and the tests for each.
`bin/test tests/FILE` runs the tests of a row. `bin/test --long tests/FILE` adds their long forms, such as a thousand readers for
three minutes, a gibibyte under strace, and faults at every call of every operation. The list is in `tests/meta/faults.py`. The
suite fails if a row has no test, or if a test cites a number that is not in the list.

"""


if __name__ == "__main__":
    print(page(), end="")  # noqa: T201
