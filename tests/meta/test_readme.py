"""What README.md, the pages beside it and docs/ say of the code, as far as a program can check it."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def rows(heading: str) -> list[list[str]]:
    """The cells of the tables in a section of the README."""
    section = re.split(r"^## ", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    (text,) = [part for part in section if part.startswith(heading)]
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def calls() -> Iterator[ast.Call]:
    """Every reading of the environment in the settings."""
    for node in ast.walk(ast.parse((ROOT / "config" / "settings.py").read_text())):
        if isinstance(node, ast.Call) and re.fullmatch(r"env\.\w+", ast.unparse(node.func)):
            yield node


def name_of(call: ast.Call) -> str:
    assert isinstance(call.args[0], ast.Constant)
    return str(call.args[0].value)


def default_of(call: ast.Call) -> str | None:
    """As the table writes it; None for one that is worked out from other settings."""
    defaults = [*call.args[1:2], *(keyword.value for keyword in call.keywords if keyword.arg == "default")]
    if not defaults:
        return ""
    if any(isinstance(node, ast.Name | ast.Attribute | ast.Call | ast.JoinedStr) for node in ast.walk(defaults[0])):
        return None
    value = eval(compile(ast.Expression(defaults[0]), "settings", "eval"))  # noqa: S307  a constant of our own settings
    return f"`{int(value)}`" if isinstance(value, bool) else f"`{value}`" if value != "" else ""


def test_settings_table_names_what_the_settings_read() -> None:
    read = {name_of(call) for call in calls()}
    read |= {f"{name_of(call)}_FILE" for call in calls() if ast.unparse(call.func) == "env.secret"}
    named = [cells[0].strip("`") for cells in rows("Settings")]
    assert sorted(named) == sorted(read)


def test_settings_table_has_the_defaults() -> None:
    table = {cells[0].strip("`"): cells[1] for cells in rows("Settings")}
    readings = [call for call in calls() if ast.unparse(call.func) != "env.secret"]
    expected = {name_of(call): default for call in readings if (default := default_of(call)) is not None}
    assert len(expected) > 20
    assert {name: table[name] for name in expected} == expected


def test_commands_table_names_every_command() -> None:
    listed = {name.split()[0] for cells in rows("Commands") if cells[1] != "planned" for name in re.findall("`(.+?)`", cells[0])}
    commands = {path.stem for path in ROOT.glob("*/management/commands/*.py")} - {"__init__"}
    assert listed == commands


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]+)?\)", page.read_text()):
            file = page.parent / target if target else page
            assert file.exists(), (page, target)
            if anchor:
                headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
                anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor[1:] in anchors, (page, anchor)


def test_paths_exist() -> None:
    """Modules and files of the checkout that a page names in backticks."""
    for page in PAGES:
        named = set(re.findall(r"`((?:config|files|vault|tenants|tests|bin|docs|\.ci)/[\w./-]*)`", page.read_text()))
        assert [path for path in sorted(named) if not (ROOT / path).exists()] == [], page


def test_shell_lines_parse() -> None:
    for page in PAGES:
        blocks = re.findall(r"^ *```sh\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL)
        checked = subprocess.run(["sh", "-n"], input="\n".join(blocks).encode(), capture_output=True, check=False)
        assert checked.stderr == b"", page
