"""README.md, the other pages in the root folder and docs/ agree with the code, as far as a program can check."""

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / ".github").rglob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
SETTINGS, COMMANDS = ROOT / "docs" / "operations" / "settings.md", ROOT / "docs" / "operations" / "commands.md"
PACKAGES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["root_packages"]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]+)?\)")
# Paths need an extension or one of these folders, because URL paths look similar.
PATH = re.compile(rf"`((?:{'|'.join(PACKAGES)})/[\w./-]+\.py|(?:tests|bench|bin|docs|\.ci)/[\w./-]*)`")


def rows(page: Path) -> list[list[str]]:
    """Returns the cells of the table rows whose first cell is code."""
    lines = [line for line in page.read_text().splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def calls() -> Iterator[ast.Call]:
    """Yields every call in the settings that reads the environment."""
    for node in ast.walk(ast.parse((ROOT / "config" / "settings.py").read_text())):
        if isinstance(node, ast.Call) and re.fullmatch(r"env\.\w+", ast.unparse(node.func)):
            yield node


def name_of(call: ast.Call) -> str:
    assert isinstance(call.args[0], ast.Constant)
    return str(call.args[0].value)


def default_of(call: ast.Call) -> str | None:
    """Returns the default as the table writes it, or None if it depends on other settings."""
    defaults = [*call.args[1:2], *(keyword.value for keyword in call.keywords if keyword.arg == "default")]
    if not defaults:
        return ""
    if any(isinstance(node, ast.Name | ast.Attribute | ast.Call | ast.JoinedStr) for node in ast.walk(defaults[0])):
        return None
    value = eval(compile(ast.Expression(defaults[0]), "settings", "eval"))  # noqa: S307  a constant in our own settings
    return f"`{int(value)}`" if isinstance(value, bool) else f"`{value}`" if value != "" else ""


def test_settings_table_lists_every_variable() -> None:
    read = {name_of(call) for call in calls()}
    read |= {f"{name_of(call)}_FILE" for call in calls() if ast.unparse(call.func) == "env.secret"}
    named = [cells[0].strip("`") for cells in rows(SETTINGS)]
    assert sorted(named) == sorted(read)


def test_settings_table_shows_the_defaults() -> None:
    table = {cells[0].strip("`"): cells[1] for cells in rows(SETTINGS)}
    readings = [call for call in calls() if ast.unparse(call.func) != "env.secret"]
    expected = {name_of(call): default for call in readings if (default := default_of(call)) is not None}
    assert len(expected) > 20
    assert {name: table[name] for name in expected} == expected


def test_commands_table_lists_every_command() -> None:
    listed = {name.split()[0] for cells in rows(COMMANDS) for name in re.findall("`(.+?)`", cells[0])}
    commands = {path.stem for path in ROOT.glob("*/management/commands/*.py")} - {"__init__"}
    assert {name for name in listed if "/" not in name} == commands


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) < 900


def test_every_page_is_linked_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        for target, _ in LINK.findall(page.read_text()):
            file = (page.parent / target).resolve()
            waiting += [file] if file.suffix == ".md" else sorted(file.glob("*.md")) if file.is_dir() else []
    assert [page for page in PAGES if page not in reached and ROOT / ".github" not in page.parents] == []


def test_link_targets_exist() -> None:
    for page in PAGES:
        for target, anchor in LINK.findall(page.read_text()):
            file = page.parent / target if target else page
            assert file.exists(), (page, target)
            if anchor:
                headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
                anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor[1:] in anchors, (page, anchor)


def test_paths_in_pages_exist() -> None:
    """Pages write paths of modules and files in backticks."""
    for page in PAGES:
        named = set(PATH.findall(page.read_text()))
        assert [path for path in sorted(named) if not (ROOT / path).exists()] == [], page


def test_pages_named_in_code_exist() -> None:
    """In comments, docstrings, help texts and messages."""
    folders = [ROOT / folder for folder in [*PACKAGES, "tests", "bench", "bin", ".ci", ".github"]]
    files = [*(path for path in ROOT.iterdir()), *(path for folder in folders for path in folder.rglob("*"))]
    for file in files:
        if file.is_file() and file.suffix in {"", ".py", ".sh", ".toml", ".yml"}:
            named = set(re.findall(r"\bdocs/[\w/-]+\.md\b", file.read_text()))
            assert [page for page in sorted(named) if not (ROOT / page).is_file()] == [], file


def test_architecture_describes_every_app() -> None:
    described = {cells[0] for cells in rows(ROOT / "docs" / "architecture.md")}
    assert {f"`{package}/`" for package in PACKAGES} <= described


def test_shell_blocks_parse() -> None:
    for page in PAGES:
        blocks = re.findall(r"^ *```sh\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL)
        checked = subprocess.run(["sh", "-n"], input="\n".join(blocks).encode(), capture_output=True, check=False)
        assert checked.stderr == b"", page
