"""One gate: views, serializers, filters and tasks reach rows through `access` and the services alone (INV-01).

Read from the syntax trees, because a test of answers sees only the requests that somebody thought of.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from django.apps import apps
from django.conf import settings


OURS = ("tenants", "vault", "files", "egress", "purge", "config")
OUTER = (
    "views",
    "serializers",
    "tasks",
    "urls",
    "schema",
)  # and whatever ends in _views, _serializers, _tasks, or is in a folder of this name
MANAGERS = {"objects", "_default_manager", "_base_manager"}
WAYS_AROUND = {"get_object_or_404", "get_list_or_404", "raw", "connection", "connections", "cursor", "get_model"}


def outer_modules() -> list[Path]:
    root = Path(settings.BASE_DIR)
    found = [
        path for app in OURS for path in (root / app).rglob("*.py") if {path.stem.split("_")[-1], path.parent.name} & {*OUTER}
    ]
    return sorted(path for path in found if "migrations" not in path.parts)


@cache
def reverse_accessors() -> set[str]:
    """`collection.files`, `user.memberships`: querysets that no gate has seen."""
    names = set()
    for model in apps.get_models():
        if model._meta.app_label in OURS:
            names |= {found.get_accessor_name() or "" for found in model._meta.related_objects if found.multiple}
    return names - {""}


def queries(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and source of whatever could reach a row by itself."""
    accessors = reverse_accessors()
    harmless = {
        node.func.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "none"  # `Thing.objects.none()`, which tells the schema what a list is of
    }
    called = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}  # `names.items()`: an accessor is not called
    modules = {alias.asname or alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            of_module = isinstance(node.value, ast.Name) and node.value.id in modules
            if (
                (node.attr in MANAGERS and node not in harmless)
                or node.attr in WAYS_AROUND
                or (node.attr in accessors and not of_module and node not in called)
            ):
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Name) and node.id in WAYS_AROUND:
            yield node.lineno, node.id


def test_modules_are_found() -> None:
    names = {f"{path.parent.name}/{path.name}" for path in outer_modules()}
    assert names >= {"views/files.py", "views/grants.py", "files/serializers.py", "files/tasks.py", "tenants/views.py"}


def test_module_makes_no_query_of_its_own() -> None:
    found = {str(path): list(queries(ast.parse(path.read_text()))) for path in outer_modules()}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_a_query_is_seen() -> None:
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


def test_what_is_no_query_is_left_alone() -> None:
    for source in ["Collection.objects.none()", "names.items()", "access.get_file(user, slug, name)", "services.files(x)"]:
        assert not list(queries(ast.parse(f"from files import access, services\n{source}"))), source
