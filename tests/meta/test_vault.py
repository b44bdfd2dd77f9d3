"""`vault` depends only on ciphertext, keys and its own rows. pyproject.toml has the import contracts of whole packages."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from django.conf import settings


VAULT: Final = Path(settings.BASE_DIR) / "vault"
HTTP: Final = ("django.http", "django.urls", "django.views", "django.shortcuts", "http", "wsgiref")
# The exceptions: checkpoints cover the audit trail and its heads, and services raise the errors that all apps share.
OF_TENANTS: Final = {
    "tenants.audit", "tenants.errors.Unavailable", "tenants.models.AuditEvent", "tenants.models.AuditHead",
    "tenants.work.deadlocks", "tenants.work.triggers",
}  # fmt: skip


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(VAULT.rglob("*.py")):
        yield str(path.relative_to(VAULT)), ast.parse(path.read_text())


def imported(tree: ast.Module) -> Iterator[str]:
    """Yields the dotted names of all imports, including those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_in(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def test_vault_does_not_import_http() -> None:
    found = {(file, name) for file, tree in modules() for name in imported(tree) if any(is_in(name, each) for each in HTTP)}
    assert not found


def test_vault_does_not_import_users_or_tenants() -> None:
    found = {(file, name) for file, tree in modules() for name in imported(tree) if is_in(name, "tenants")}
    assert found
    assert not {(file, name) for file, name in found if not any(is_in(name, each) for each in OF_TENANTS)}


def test_modules_are_at_most_450_lines() -> None:
    assert not {file for file, _ in modules() if len((VAULT / file).read_text().splitlines()) > 450}
