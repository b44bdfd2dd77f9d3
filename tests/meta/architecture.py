"""Generates the diagram in docs/architecture.md: the apps, the packages inside them, and the imports between them.

The diagram shows the real imports, so it cannot differ from the code. `bin/check` compares the page with this output.

    .venv/bin/python -m tests.meta.architecture           prints the page with a new diagram
    .venv/bin/python -m tests.meta.architecture --write   writes the page
"""

import sys
import tomllib
from pathlib import Path

import grimp


ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN = "<!-- The diagram is generated. To update it: .venv/bin/python -m tests.meta.architecture --write -->\n"
END = "<!-- End of the diagram. -->\n"
NOT_DRAWN = {"management", "migrations"}  # exist in every app and say nothing about its structure

Edges = set[tuple[str, str]]


def app_names() -> list[str]:
    """Returns the packages that import-linter checks, from the top layer to the bottom."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return list(settings["tool"]["importlinter"]["root_packages"])


def package_of(module: str) -> str:
    """Returns the package inside an app that a module belongs to, or the app itself."""
    app, *inner = module.split(".")
    is_package = inner and inner[0] not in NOT_DRAWN and (ROOT / app / inner[0] / "__init__.py").is_file()
    return f"{app}.{inner[0]}" if is_package else app


def imports(apps: list[str]) -> tuple[set[str], Edges]:
    """Returns the packages, and the pairs of importing and imported package."""
    graph = grimp.build_graph(*apps, cache_dir=None)
    found, edges = set(), set()
    for module in graph.modules:
        found.add(package_of(module))
        edges |= {(package_of(module), package_of(imported)) for imported in graph.find_modules_directly_imported_by(module)}
    return found, {(source, target) for source, target in edges if source != target}


def draw(apps: list[str], packages: set[str], edges: Edges) -> str:
    """Returns Mermaid text: one box for each app, with boxes for its packages and for its other modules.

    For readability, an arrow between two apps connects the apps, not their packages.
    """
    lines = ["flowchart TB"]
    for app in apps:
        inside = sorted(each for each in packages if each.startswith(f"{app}."))
        if not inside:
            lines.append(f'    {app}["{app}/"]')
            continue
        lines.append(f'    subgraph {app}["{app}/"]')
        lines.append(f'        {app}__modules["{app}/*.py"]')
        lines += [f'        {node(each)}["{each.replace(".", "/")}/"]' for each in inside]
        own = sorted((source, target) for source, target in edges if within(app, source) and within(app, target))
        lines += [f"        {node(source)} --> {node(target)}" for source, target in own]
        lines.append("    end")
    order = {app: number for number, app in enumerate(apps)}
    between = {(source.split(".")[0], target.split(".")[0]) for source, target in edges}
    ordered = sorted(between, key=lambda edge: (order[edge[0]], order[edge[1]]))
    lines += [f"    {source} --> {target}" for source, target in ordered if source != target]
    return "\n".join(lines) + "\n"


def within(app: str, each: str) -> bool:
    return each.split(".")[0] == app


def node(each: str) -> str:
    return each.replace(".", "__") if "." in each else f"{each}__modules"


def page() -> str:
    """Returns docs/architecture.md with a new diagram."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, marker, after = rest.partition(END)
    if not marker:
        raise SystemExit(f"{PAGE} lacks the two comments around the diagram: see BEGIN and END in tests/meta/architecture.py")
    apps = app_names()
    return f"{before}{BEGIN}\n```mermaid\n{draw(apps, *imports(apps))}```\n\n{END}{after}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(page())
    else:
        print(page(), end="")  # noqa: T201  for bin/check
