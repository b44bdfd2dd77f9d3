"""A test starts background processes only so that they end with it, however the run ends (tests/live/child_process.py)."""

import ast
from collections.abc import Iterator

from tests.live.server import ROOT


def names_of(call: ast.AST) -> str:
    """`subprocess.Popen` of a call of it; nothing of what is no call."""
    return ast.unparse(call.func) if isinstance(call, ast.Call) else ""


def starts(source: str) -> Iterator[ast.Call]:
    """The calls of Popen that a killed run would leave behind."""
    for scope in ast.walk(ast.parse(source)):
        if isinstance(scope, (ast.Module, ast.FunctionDef)):
            dying = {
                target.id
                for node in ast.walk(scope)
                if isinstance(node, ast.Assign) and names_of(node.value) == "killed_with_parent"
                for target in node.targets
                if isinstance(target, ast.Name)
            }
            for node in ast.walk(scope):
                if isinstance(node, ast.Call) and names_of(node).rpartition(".")[2] == "Popen":
                    command = node.args[0] if node.args else None
                    is_dying = command is not None and names_of(command) == "killed_with_parent"
                    if not is_dying and not (isinstance(command, ast.Name) and command.id in dying):
                        yield node


def test_tests_start_no_process_that_outlives_them() -> None:
    found = {
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for call in starts(path.read_text())
    }
    assert found == set()


def test_process_that_outlives_its_test_is_seen() -> None:
    for body in [
        "subprocess.Popen(['sleep', '100'])",
        "Popen(args=killed_with_parent('sleep', '100'))",
        "command = ['sleep', '100']; subprocess.Popen(command, cwd=ROOT)",
        "with subprocess.Popen(member.command(url)) as curl: pass",
    ]:
        assert list(starts(f"def test() -> None:\n    {body}")), body
    for body in [
        "subprocess.Popen(killed_with_parent('sleep', '100'), cwd=ROOT)",
        "command = killed_with_parent('sleep', '100'); subprocess.Popen(command)",
        "subprocess.run(['true'])",
    ]:
        assert not list(starts(f"def test() -> None:\n    {body}")), body
