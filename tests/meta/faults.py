"""What must hold and what may go wrong: the numbers that tests cite, which docs/faults.md shows with the tests beside each."""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final


ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = ROOT / "docs" / "faults.md"
CITED: Final = re.compile(r"\b(INV|F)-(\d\d)(?:\.\.(?:INV|F)-(\d\d))?")

INVARIANTS: Final = """
01 A response to one tenant holds no id, name, byte or count of another.
02 The bytes of a response that completes are the bytes that were uploaded; anything else ends visibly short or is an error.
03 No plaintext leaves that has not been authenticated.
04 No pair of key and nonce is used twice.
05 A segment opens only at its own place in its own version of its own file, collection and tenant.
06 Every file has its object, of the recorded size; every object has a row that knows of it.
07 After a purge nothing is under the collection's prefix, in any version, and its key is gone.
08 Nothing makes a destroyed key, or a purged collection, readable again.
09 A link is redeemed at most once, counted over all processes.
10 What is released was approved by distinct people with the right to do so, then and now.
11 What was approved is what is released.
12 A request moves along listed transitions only.
13 A request has one outcome and at most one package.
14 Every security-relevant action has exactly one audit row, in the transaction of the change; rows are append-only.
15 No plaintext, key, token or filename is in logs, temporary files, object keys or metadata.
16 Losing a right counts on the next request, and on running streams within seconds.
17 No input makes an unhandled error; errors have one shape and show nothing of the inside.
18 What a quota counts is what there is, whatever crashed or ran in parallel.
19 Memory, descriptors, connections and slots return after any number of broken transfers.
20 Repeating a request or a task that is safe to repeat changes nothing.
"""

FAULTS: Final = """
01 The store throttles or fails: a few attempts, then 503 with Retry-After, nothing kept.
02 The store did it and its answer is lost: one object.
03 The store refuses connections, has no name, or a certificate that nobody vouches for: 503 in seconds; `/readyz` says so.
04 The store falls silent: bounded waiting, the thread is free again.
05 The store's connection breaks at the start, in the middle, at the last byte: the download goes on behind it, or ends short.
06 The store answers with too little, too much or a page of HTML: never taken for content.
07 Any byte of an object or of its row is altered: never wrong plaintext.
08 Segments or objects are swapped, or an older version comes back: never opened.
09 Segments are dropped, doubled or added: never opened.
10 An object is gone: 502 before the first byte, the row says `missing` and stays.
11 The store refuses by right: no storm of attempts.
12 A part of an upload fails: the upload is aborted.
13 The end of a multipart upload is in doubt: the object itself decides.
14 A kill in mid-upload: what it left is cleared away.
15 More parts than S3 counts: part sizes grow.
16 Copies above 5 GiB for staging.
17 Deletion fails in part: what remains is tried again until the listing is empty.
18 Versioned and locked buckets in a purge.
19 A listing is incomplete: an error, never taken for all there is.
20 Wrong or empty bucket, old database: the sweep refuses.
21 The store refuses boto3's additional checksums: both settings work.
22 The database goes between the object and its row: an error or an unknown outcome is told; the object does not stay alone.
23 The database goes while a download runs: it goes on without it for a while; none holds a connection.
24 The answer to a COMMIT is lost: the row is read back.
25 Deadlock, serialization failure, locked database: tried again a few times, then 503.
26 A worker is killed between two steps: the next one converges.
27 Packaging is killed.
28 The server is told to stop while transfers run: they end, or are cut cleanly.
29 A kill between COMMIT and a task: nothing is enqueued, rows are found by ticks.
30 The broker is gone or emptied: nothing is lost.
31 A tick is delivered twice, late or out of order: a lease decides.
32 Two beats, a dead beat, a tick longer than its period: a lease decides.
33 Purges and a deletion in parallel.
34 The mail server is down, slow or refuses: what the mail tells of stands, and the mail comes later, once.
35 The disk is full or read-only: transfers to S3 need none; else 503 and nothing half-done.
36 Out of descriptors, threads or database connections: 503 or refused, and recovery without a restart.
37 A migration while old processes live: it only adds, and no request fails.
38 Sizes at every border, and above the limit: exact round trip, or 413.
39 Lying or missing lengths, both framings, Expect, compressed bodies: 4xx, no hang.
40 Hostile filenames: refused, or kept exactly and served safely.
41 Hostile JSON: 4xx, quickly.
42 Hostile forms: 4xx, in flat memory.
43 Hostile queries: 4xx.
44 Hostile headers: refused or ignored.
45 Ranges of every kind, answered as RFC 9110 says and at the cost of what is sent.
46 Slow, stalling and trickling clients: cut off, and nobody else waits.
47 Clients that hang up anywhere: everything is given back.
48 Tokens that are expired, forged, of another kind: 401.
49 People who are deactivated or lose a role in between: denied.
50 Every object of another tenant, by every method: 404.
51 A one-off link by many at once, late, by HEAD, after its file or minter is gone: one 200, else the same 404.
52 Deciders at once.
53 Roles that change during a review.
54 Files that change between approval and packaging.
55 More downloads of a package than allowed, in parallel.
56 The release bucket fails.
57 A collection expires during a review.
58 Uploads of one name at once: one wins, the others are told, no object stays.
59 Rotation while files are read, written and replaced, twice at once, killed half-way: nothing is lost.
60 Deletion of 100,000 files.
61 Rows that nobody may write, written past the application: refused by the database.
62 Exports that a spreadsheet would execute, or that are long: disarmed, in flat memory, visibly cut when they fail.
63 A database backup from before a purge.
64 Bucket and database from different days.
65 The clock jumps ahead: nothing goes that the vault's clock does not confirm, and no more than a day's limit.
66 Canaries of plaintext, tokens, names and keys: nowhere outside their columns.
67 A master key that is wrong, missing or readable by others: refused, or 503; never a second key.
68 Secrets of another installation.
69 Log injection: one JSON line.
70 Counters that drifted.
"""


def rows(text: str) -> Iterator[tuple[int, str]]:
    """Number, and what it says."""
    for line in text.strip().splitlines():
        number, says = line.split(maxsplit=1)
        yield int(number), says


def citations() -> dict[tuple[str, int], list[str]]:
    """Kind and number -> files below tests/ that name it."""
    found: dict[tuple[str, int], set[str]] = defaultdict(set)
    for path in (ROOT / "tests").rglob("test_*.py"):
        for kind, first, last in CITED.findall(path.read_text()):
            for number in range(int(first), int(last or first) + 1):
                found[kind, number].add(str(path.relative_to(ROOT / "tests")))
    return {key: sorted(files) for key, files in found.items()}


def page() -> str:
    """docs/faults.md."""
    cited = citations()
    tables = []
    for kind, title, text in (("INV", "What holds after every step", INVARIANTS), ("F", "What may go wrong", FAULTS)):
        lines = [f"| {kind}-{number:02} | {says} | {', '.join(cited.get((kind, number), []))} |" for number, says in rows(text)]
        tables.append(f"## {title}\n\n| | | shown in `tests/` by |\n|---|---|---|\n" + "\n".join(lines))
    return INTRODUCTION + "\n\n".join(tables) + "\n"


INTRODUCTION: Final = """\
<!-- Generated. To renew it: .venv/bin/python -m tests.meta.faults > docs/faults.md -->

# Invariants and faults

What must hold at all times (INV), what can go wrong (F), and the tests that show what happens then. `bin/test tests/FILE` runs
the tests of a row. `bin/test --long tests/FILE` adds their long forms, such as a thousand readers for three minutes, a gibibyte
under strace, and faults at every point of every operation. The list is in `tests/meta/faults.py`. The suite fails if a row has
no test, or if a test cites a number that is not in the list.

"""


if __name__ == "__main__":
    print(page(), end="")  # noqa: T201
