"""The picture in docs/architecture.md: the apps, the rooms (packages) inside them, and the imports between them.

It is drawn from the real imports, so that it cannot differ from the code. `bin/check` compares the page with this output.

    .venv/bin/python -m tests.meta.architecture           prints the page with a new picture
    .venv/bin/python -m tests.meta.architecture --write   writes it
"""

import sys
import tomllib
from pathlib import Path

import grimp


ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN = "<!-- The picture is generated. To renew it: .venv/bin/python -m tests.meta.architecture --write -->\n"
END = "<!-- End of the picture. -->\n"
NOT_DRAWN = {"management", "migrations"}  # every app has them, and they say nothing about its structure

Edges = set[tuple[str, str]]


def apps() -> list[str]:
    """The packages that import-linter checks, from the top floor to the bottom."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return list(settings["tool"]["importlinter"]["root_packages"])


def room(module: str) -> str:
    """The package inside an app that a module belongs to, or the app itself."""
    app, *inner = module.split(".")
    is_room = inner and inner[0] not in NOT_DRAWN and (ROOT / app / inner[0] / "__init__.py").is_file()
    return f"{app}.{inner[0]}" if is_room else app


def imports(packages: list[str]) -> tuple[set[str], Edges]:
    """The rooms, and which room imports which."""
    graph = grimp.build_graph(*packages, cache_dir=None)
    rooms, edges = set(), set()
    for module in graph.modules:
        rooms.add(room(module))
        edges |= {(room(module), room(imported)) for imported in graph.find_modules_directly_imported_by(module)}
    return rooms, {(source, target) for source, target in edges if source != target}


def draw(packages: list[str], rooms: set[str], edges: Edges) -> str:
    """Mermaid text: one box for each app; inside an app that has rooms, one for each and one for its other modules.

    Arrows between apps are drawn from box to box, whichever rooms the import joins. That keeps the picture readable.
    """
    lines = ["flowchart TB"]
    for app in packages:
        inside = sorted(each for each in rooms if each.startswith(f"{app}."))
        if not inside:
            lines.append(f'    {app}["{app}/"]')
            continue
        lines.append(f'    subgraph {app}["{app}/"]')
        lines.append(f'        {app}__modules["{app}/*.py"]')
        lines += [f'        {node(each)}["{each.replace(".", "/")}/"]' for each in inside]
        own = sorted((source, target) for source, target in edges if within(app, source) and within(app, target))
        lines += [f"        {node(source)} --> {node(target)}" for source, target in own]
        lines.append("    end")
    order = {app: number for number, app in enumerate(packages)}
    between = {(source.split(".")[0], target.split(".")[0]) for source, target in edges}
    ordered = sorted(between, key=lambda edge: (order[edge[0]], order[edge[1]]))
    lines += [f"    {source} --> {target}" for source, target in ordered if source != target]
    return "\n".join(lines) + "\n"


def within(app: str, each: str) -> bool:
    return each.split(".")[0] == app


def node(each: str) -> str:
    return each.replace(".", "__") if "." in each else f"{each}__modules"


def page() -> str:
    """docs/architecture.md with a new picture in its place."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, marker, after = rest.partition(END)
    if not marker:
        raise SystemExit(f"{PAGE} has no place for the picture: it needs the two comments of tests/meta/architecture.py")
    packages = apps()
    return f"{before}{BEGIN}\n```mermaid\n{draw(packages, *imports(packages))}```\n\n{END}{after}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(page())
    else:
        print(page(), end="")  # noqa: T201  for bin/check
