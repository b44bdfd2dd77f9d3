"""Mutation testing: checks that the tests detect every small change of the most important code.

    .venv/bin/python -m bench.mutants [file ...]      default: all files of TESTS, which takes an hour on two cores

Each mutant is one change of the syntax tree in a copy of the checkout. It runs against the tests that TESTS lists for its file:
first those of the gate, then those of `--long`. The output "LONG" marks a mutant that only the latter detect. A mutant that no
test detects must be listed in `mutants.txt` with the reason why it behaves like the original. Otherwise the exit code is 1.
mutmut 3 is not sufficient, because it skips properties, dataclasses and module-level code such as limits.
"""

import ast
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from itertools import takewhile
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple


ROOT = Path(__file__).resolve().parents[1]
GATE, LONG, NO_TESTS = "not long", "long", 5
PARALLEL, TIMEOUT_SECONDS = 2, 300  # a mutant that times out counts as detected
CRYPTO, STREAMS, LINKS = "tests/unit/test_crypto", "tests/services/test_streams.py", "tests/api/test_links.py"
TESTS = {
    "files/access.py": ["tests/api/test_levels.py", "tests/api/test_grants.py", STREAMS],
    "vault/crypto.py": [f"{CRYPTO}.py", f"{CRYPTO}_damage.py", f"{CRYPTO}_vectors.py"],
    "files/http/headers.py": ["tests/unit/test_headers.py"],
    "files/links.py": [LINKS, "tests/services/test_races.py", "-k", "link"],
    "vault/content.py": [STREAMS, "tests/services/test_open.py", "tests/services/test_none_cipher.py"],
    "vault/content_reader.py": [STREAMS, "tests/services/test_open.py", "tests/services/test_none_cipher.py"],
    "files/http/streaming.py": ["tests/unit/test_transfers.py", STREAMS, "tests/api/test_content.py", LINKS],
}
PAIRS = ["Lt LtE", "Gt GtE", "Eq NotEq", "Is IsNot", "In NotIn", "And Or", "Add Sub", "Mult FloorDiv", "min max"]
OTHER = {one: other for pair in PAIRS for one, other in (pair.split(), pair.split()[::-1])} | dict.fromkeys(
    ["Div", "Mod"], "Mult"
)


class Mutant(NamedTuple):
    name: str  # file::function: code -> changed code #n; stable until the code changes
    file: str
    source: str


def changed(node: Any) -> Iterator[ast.AST]:
    """Yields the replacements of a node."""
    other = deepcopy(node)
    match node:
        case ast.Compare(ops=[sign]) | ast.BinOp(op=sign) | ast.BoolOp(op=sign) | ast.AugAssign(op=sign):
            if swapped := OTHER.get(type(sign).__name__):
                vars(other).update({"ops": [getattr(ast, swapped)()], "op": getattr(ast, swapped)()})
                yield other
        case ast.UnaryOp(operand=operand) if not isinstance(operand, ast.Constant):
            yield operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield from (ast.Constant(value + 1), ast.Constant(value - 1))
        case ast.Constant(value=str(value) | bytes(value)):
            yield ast.Constant(value + ("X" if isinstance(value, str) else b"X"))
        case ast.Call(func=ast.Name(id="min" | "max")):
            other.func.id = OTHER[node.func.id]
            yield other
        case ast.If() | ast.While() | ast.IfExp():
            other.test = ast.UnaryOp(ast.Not(), node.test)
            yield other
    is_assigned = isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute)
    if is_assigned or isinstance(node, ast.Expr | ast.AugAssign | ast.Raise | ast.Break | ast.Continue):
        yield ast.Pass()


def is_text(node: ast.AST) -> bool:
    """Whether the node is a docstring or an error, whose wording does not change the behaviour."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    return isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("Error", "Object", "Key", "Ended"))


def positions(node: ast.AST, path: str = "-") -> Iterator[tuple[str, ast.AST, str, int | None]]:
    """Yields the position of each node: the function around it, its parent, the field of the parent, and the index there."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        path = f"{path}.{node.name}".removeprefix("-.")
    for field, value in ast.iter_fields(node):
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST) and field not in {"annotation", "returns"} and not is_text(child):
                yield path, node, field, index
                yield from positions(child, path)


def replace(parent: ast.AST, field: str, index: int | None, node: Any) -> None:
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def mutants(file: str) -> Iterator[Mutant]:
    tree = ast.parse((ROOT / file).read_text())
    seen: Counter[str] = Counter()
    for path, parent, field, index in positions(tree):
        node = getattr(parent, field) if index is None else getattr(parent, field)[index]
        for other in changed(node):
            before, after = (ast.unparse(each).partition("\n")[0][:120] for each in (node, other))
            seen[name := f"{file}::{path}: {before} -> {after}"] += 1
            replace(parent, field, index, other)
            yield Mutant(f"{name} #{seen[name]}", file, ast.unparse(ast.fix_missing_locations(tree)))
            replace(parent, field, index, node)


def passes(copy: Path, file: str, speed: str) -> bool:
    """Whether the tests of a file pass in a copy of the checkout. `speed` is the marker expression GATE or LONG."""
    options = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", "-m", speed]
    command = [sys.executable, "-m", "pytest", *options, *TESTS[file]]
    try:
        code = subprocess.run(command, cwd=copy, capture_output=True, check=False, timeout=TIMEOUT_SECONDS).returncode
        return code in {0, NO_TESTS}
    except subprocess.TimeoutExpired:
        return False


def main(files: list[str]) -> int:
    listed = {line.partition(" | ")[0] for line in Path(__file__).with_suffix(".txt").read_text().splitlines()}
    found = [mutant for file in files for mutant in mutants(file)]
    copies: SimpleQueue[Path] = SimpleQueue()

    def survived(mutant: Mutant) -> list[str]:
        copy = copies.get()
        (copy / mutant.file).write_text(mutant.source)
        try:
            return [*takewhile(lambda speed: passes(copy, mutant.file, speed), (GATE, LONG))]
        finally:
            shutil.copy(ROOT / mutant.file, copy / mutant.file)
            copies.put(copy)

    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(PARALLEL) as pool:
        for number in range(PARALLEL):
            copies.put(Path(shutil.copytree(ROOT, f"{folder}/{number}", ignore=shutil.ignore_patterns(".*", "var"))))
        if broken := [file for file in files if not all(passes(Path(folder) / "0", file, speed) for speed in (GATE, LONG))]:
            sys.exit(f"the tests fail without a mutant: {broken}")
        unlisted = 0
        for mutant, speeds in zip(found, pool.map(survived, found), strict=True):
            if speeds == [GATE, LONG]:
                unlisted += mutant.name not in listed
                print("known" if mutant.name in listed else "ALIVE", mutant.name, flush=True)
            elif speeds:
                print("LONG ", mutant.name, flush=True)
    print(f"{len(found)} mutants, {unlisted} survivors that mutants.txt does not list")
    return 1 if unlisted else 0


if __name__ == "__main__":
    os.environ.pop("TEST_DATABASE_URL", None)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # with it, each run would compile all tests again
    sys.exit(main(sys.argv[1:] or list(TESTS)))
