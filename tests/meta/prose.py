"""Finds phrases that the style guide replaces by standard English, in documentation, templates, strings and comments.

`bin/check` runs it. Each finding is one line: `file:line: "phrase" -> "replacement"`. Each phrase has several words and is never
good English in a technical text. Single words depend on their context and are left to the review.

    .venv/bin/python -m tests.meta.prose               checks PARTS
    .venv/bin/python -m tests.meta.prose PATH…         checks these files and folders
"""

import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final


ROOT: Final = Path(__file__).resolve().parents[2]
# Files and folders that are clean and stay clean
PARTS: Final = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    ".github",
    "docs",
    "purge",
    "vault",
    "tenants",
    "config",
    "bin",
    ".ci",
]
TEXT: Final = {".html", ".md", ".txt", ".yml", ".yaml", ".toml", ".sh"}
THESE_FILES: Final = {"tests/meta/prose.py", "tests/meta/test_prose.py"}  # they quote the phrases

PHRASES: Final = {
    # Time and order
    "any more": "no longer",
    "for ever": "permanently",
    "comes late": "is late",
    "time is over": "has expired",
    "grace is over": "the grace period has ended",
    "window is over": "the window has ended",
    "date is over": "has expired",
    "what is over": "expired",
    "comes to its end": "ends",
    "begins anew": "restarts",
    "made anew": "regenerated",
    "written anew": "rewritten",
    # Who does what
    "by itself": "automatically",
    "by themselves": "automatically",
    "goes by itself": "is deleted automatically",
    "told of": "notified of",
    "hears of": "is notified of",
    "hear of": "are notified of",
    "heard of": "received",
    "asks for nothing": "requests nothing",
    "sees to it": "ensures",
    "whoever may": "name the role",
    "whoever has": "name the role",
    "whoever wants": "name the role",
    "whoever is": "name the role",
    "somebody who": "a user who",
    "nobody who": "no user who",
    "who may what": "who may do what",
    "has no say": "has no effect",
    "who said so": "who decided",
    # What happens
    "is to go": "is due",
    "are to go": "are due",
    "is to be had": "is available",
    "are to be had": "are available",
    "to be had": "available",
    "can be had": "is available",
    "lets go of": "releases",
    "let go of": "release",
    "letting go of": "releasing",
    "gives back": "releases, returns",
    "give back": "release, return",
    "gave back": "released, returned",
    "given back": "released, returned",
    "takes along": "includes",
    "take along": "include",
    "comes of it": "results",
    "comes of that": "results",
    "leads to nothing": "has no effect",
    "goes past it": "bypasses it",
    "keeps out of": "leaves out",
    "keep out of": "leave out",
    "asked of": "sent to, requested from",
    "asked for nothing": "not requested",
    "is asked for": "is requested",
    "are asked for": "are requested",
    "was asked for": "was requested",
    # Reasons and states
    "is in the way": "blocks",
    "was in the way": "blocked",
    "in the way of": "blocking",
    "in its way": "blocking it",
    "stands in the way": "blocks",
    "what stops it": "the blocking reason",
    "a word why": "a reason",
    "says so": "reports it",
    "said so": "reported it",
    "is wrong with": "is invalid in",
    "a side door": "another way",
    "knows nothing of": "does not know",
    "know nothing of": "do not know",
    "is not there": "does not exist",
    "are not there": "do not exist",
    "there is nothing of": "nothing remains of",
    "nothing of it": "no part of it",
    "what it holds": "the contents",
    "what it is about": "its subject",
    "what there is": "use the noun",
    "all that there is": "all",
    "key of our own": "our key",
    "form of our own": "our form",
    "as often as it likes": "without limit",
    "whatever becomes of": "independently of",
    "thinks better of": "reconsiders",
    "think better of": "reconsider",
}


def pattern_of(phrases: Iterable[str]) -> re.Pattern[str]:
    """Matches whole words. The longest phrase wins, and a phrase can continue on the next line, also of a `#` comment."""
    ordered = sorted(phrases, key=len, reverse=True)
    return re.compile(
        r"\b(?:" + "|".join(r"[\s#]+".join(map(re.escape, each.split())) for each in ordered) + r")\b", re.IGNORECASE
    )


PATTERN: Final = pattern_of(PHRASES)


def prose_in(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (number of the first line, text): the strings and comments of a Python file, or the whole of any other."""
    text = path.read_text()
    if path.suffix != ".py":
        yield 1, text
        return
    comments: list[tokenize.TokenInfo] = []  # on consecutive lines
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            if comments and token.start[0] != comments[-1].start[0] + 1:
                yield comments[0].start[0], "\n".join(each.string for each in comments)
                comments = []
            comments.append(token)
        elif tokenize.tok_name[token.type] in {"STRING", "FSTRING_MIDDLE"}:
            yield token.start[0], token.string
    if comments:
        yield comments[0].start[0], "\n".join(each.string for each in comments)


def findings_in(path: Path, name: str) -> Iterator[str]:
    for line, text in prose_in(path):
        for match in PATTERN.finditer(text):
            phrase = re.sub(r"[\s#]+", " ", match[0])
            yield f'{name}:{line + text.count(chr(10), 0, match.start())}: "{phrase}" -> "{PHRASES[phrase.lower()]}"'


def files_in(parts: Iterable[str]) -> Iterator[Path]:
    """Raises FileNotFoundError for a part that does not exist, so that a renamed folder does not leave the check."""
    for part in parts:
        root = ROOT / part
        if not root.exists():
            raise FileNotFoundError(root)
        for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
            is_script = not path.suffix and path.is_file() and path.read_bytes()[:2] == b"#!"
            if path.is_file() and (path.suffix in TEXT | {".py"} or is_script) and name_of(path) not in THESE_FILES:
                yield path


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def findings(parts: Iterable[str] = PARTS) -> list[str]:
    """Returns one line for each phrase, in the order of files and lines."""
    return [line for path in files_in(parts) for line in findings_in(path, name_of(path))]


if __name__ == "__main__":
    found = findings(sys.argv[1:] or PARTS)
    print("\n".join(found) or "no phrase to replace")  # noqa: T201  for bin/check
    sys.exit(bool(found))
