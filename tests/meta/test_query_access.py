"""Views, serializers and tasks access rows only through `access` and the services, which check permissions (INV-01).

The tests analyse syntax trees, because tests of responses cover only the requests that they send.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from django.apps import apps
from django.conf import settings


OURS = ("tenants", "vault", "files", "egress", "purge", "config")
# Modules with one of these names, with a name that ends in `_` and one of them, and modules in a folder of that name.
OUTER = ("views", "serializers", "tasks", "urls", "schema")
MANAGERS = {"objects", "_default_manager", "_base_manager"}
BYPASSES = {"get_object_or_404", "get_list_or_404", "raw", "connection", "connections", "cursor", "get_model"}


def outer_modules() -> list[Path]:
    root = Path(settings.BASE_DIR)
    found = [
        path for app in OURS for path in (root / app).rglob("*.py") if {path.stem.split("_")[-1], path.parent.name} & {*OUTER}
    ]
    return sorted(path for path in found if "migrations" not in path.parts)


@cache
def reverse_accessors() -> set[str]:
    """Returns the names of reverse relations (`collection.files`, `user.memberships`), whose querysets check no permission."""
    names = set()
    for model in apps.get_models():
        if model._meta.app_label in OURS:
            names |= {found.get_accessor_name() or "" for found in model._meta.related_objects if found.multiple}
    return names - {""}


def queries(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yields line and source of each expression that may query rows directly."""
    accessors = reverse_accessors()
    harmless = {
        node.func.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "none"  # `Thing.objects.none()` only tells the schema the type of a list
    }
    called = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}  # `names.items()`: accessors are not called
    modules = {alias.asname or alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            is_module_attribute = isinstance(node.value, ast.Name) and node.value.id in modules
            if (
                (node.attr in MANAGERS and node not in harmless)
                or node.attr in BYPASSES
                or (node.attr in accessors and not is_module_attribute and node not in called)
            ):
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Name) and node.id in BYPASSES:
            yield node.lineno, node.id


def test_outer_modules_are_found() -> None:
    names = {f"{path.parent.name}/{path.name}" for path in outer_modules()}
    assert names >= {"views/files.py", "views/grants.py", "files/serializers.py", "files/tasks.py", "tenants/views.py"}


def test_outer_modules_make_no_queries() -> None:
    found = {str(path): list(queries(ast.parse(path.read_text()))) for path in outer_modules()}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_queries_are_detected() -> None:
    for source in [
        "Collection.objects.get(slug=slug)",
        "models.StoredFile.objects.all()",
        "StoredFile._default_manager.filter(pk=1)",
        "collection.files.filter(name='x')",
        "user.memberships.all()",
        "request.items.all()",
        "file.collection.grants.first()",
        "get_object_or_404(Collection, slug=slug)",
        "connection.cursor()",
        "apps.get_model('files', 'StoredFile')",
        "StoredFile.objects.none() | StoredFile.objects.all()",
    ]:
        assert list(queries(ast.parse(source))), source


def test_other_expressions_are_not_detected() -> None:
    for source in ["Collection.objects.none()", "names.items()", "access.get_file(user, slug, name)", "services.files(x)"]:
        assert not list(queries(ast.parse(f"from files import access, services\n{source}"))), source
