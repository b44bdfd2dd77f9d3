"""What `vault` may know: ciphertext, keys and rows of its own. pyproject.toml has the contracts of whole packages."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from django.conf import settings


VAULT: Final = Path(settings.BASE_DIR) / "vault"
HTTP: Final = ("django.http", "django.urls", "django.views", "django.shortcuts", "http", "wsgiref")
# Beside these: the trail and its heads are what checkpoints are made of, and services refuse with the errors that all apps share.
OF_TENANTS: Final = {
    "tenants.audit", "tenants.errors.Unavailable", "tenants.models.AuditEvent", "tenants.models.AuditHead",
    "tenants.work.deadlocks", "tenants.work.triggers",
}  # fmt: skip


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(VAULT.rglob("*.py")):
        yield str(path.relative_to(VAULT)), ast.parse(path.read_text())


def imported(tree: ast.Module) -> Iterator[str]:
    """Dotted names of modules and of what is imported from them, wherever the import is."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_in(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def test_vault_knows_no_http() -> None:
    found = {(file, name) for file, tree in modules() for name in imported(tree) if any(is_in(name, each) for each in HTTP)}
    assert not found


def test_vault_knows_neither_people_nor_tenants() -> None:
    found = {(file, name) for file, tree in modules() for name in imported(tree) if is_in(name, "tenants")}
    assert found
    assert not {(file, name) for file, name in found if not any(is_in(name, each) for each in OF_TENANTS)}


def test_modules_are_short_enough_to_read() -> None:
    assert not {file for file, _ in modules() if len((VAULT / file).read_text().splitlines()) > 450}
