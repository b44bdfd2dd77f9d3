"""A test starts background processes only so that they end with it, however the run ends (tests/live/child_process.py)."""

import ast
from collections.abc import Iterator

from tests.live.server import ROOT


def called_name(call: ast.AST) -> str:
    """Returns the dotted name of the called function, or an empty string for other nodes."""
    return ast.unparse(call.func) if isinstance(call, ast.Call) else ""


def untied_processes(source: str) -> Iterator[ast.Call]:
    """Yields the calls of Popen whose processes would outlive a killed run."""
    for scope in ast.walk(ast.parse(source)):
        if isinstance(scope, (ast.Module, ast.FunctionDef)):
            tied = {
                target.id
                for node in ast.walk(scope)
                if isinstance(node, ast.Assign) and called_name(node.value) == "killed_with_parent"
                for target in node.targets
                if isinstance(target, ast.Name)
            }
            for node in ast.walk(scope):
                if isinstance(node, ast.Call) and called_name(node).rpartition(".")[2] == "Popen":
                    command = node.args[0] if node.args else None
                    is_tied = command is not None and called_name(command) == "killed_with_parent"
                    if not is_tied and not (isinstance(command, ast.Name) and command.id in tied):
                        yield node


def test_tests_start_no_process_that_outlives_them() -> None:
    found = {
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for call in untied_processes(path.read_text())
    }
    assert found == set()


def test_process_that_outlives_its_test_is_detected() -> None:
    for body in [
        "subprocess.Popen(['sleep', '100'])",
        "Popen(args=killed_with_parent('sleep', '100'))",
        "command = ['sleep', '100']; subprocess.Popen(command, cwd=ROOT)",
        "with subprocess.Popen(member.command(url)) as curl: pass",
    ]:
        assert list(untied_processes(f"def test() -> None:\n    {body}")), body
    for body in [
        "subprocess.Popen(killed_with_parent('sleep', '100'), cwd=ROOT)",
        "command = killed_with_parent('sleep', '100'); subprocess.Popen(command)",
        "subprocess.run(['true'])",
    ]:
        assert not list(untied_processes(f"def test() -> None:\n    {body}")), body
