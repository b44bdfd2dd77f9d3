"""Migrations stay compatible with processes of the previous release, which run until they are replaced (F-37).

See docs/operations/install.md.
"""

from typing import Final

import pytest
from django.db import models
from django.db.migrations import (
    AddField,
    AddIndex,
    AlterModelOptions,
    CreateModel,
    DeleteModel,
    RemoveField,
    RemoveIndex,
    RenameField,
    RunPython,
    RunSQL,
)
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations import AddConstraint, AlterField
from django.db.migrations.operations.base import Operation


pytestmark = pytest.mark.both_databases
# The latest migrations of the current release; later ones are checked. A release updates this table.
RELEASED: Final = {
    "egress": "0001_initial",
    "files": "0001_initial",
    "purge": "0001_initial",
    "tenants": "0001_initial",
    "vault": "0001_initial",
}

# Migration -> why it is compatible with the previous release, although one of its operations looks incompatible.
EXPLAINED: Final[dict[tuple[str, str], str]] = {}


def incompatibility(operation: Operation) -> str:
    """Returns why the operation breaks the previous release, or an empty string."""
    match operation:
        case RemoveField() | DeleteModel() | RenameField():
            return "the previous release reads and writes what the operation removes"
        case AddField(field=field) if not (field.null or field.has_db_default() or field.many_to_many):
            return "the previous release inserts rows without the value: use null=True or db_default"
        case AddField() | CreateModel() | AddIndex() | RemoveIndex() | AlterModelOptions():  # slower at worst
            return ""
    return "unknown operation: review it and add it to EXPLAINED"


def test_new_migrations_are_compatible_with_the_previous_release() -> None:
    graph = MigrationLoader(None).graph
    released = {node for leaf in RELEASED.items() for node in graph.forwards_plan(leaf)}
    new = [node for node in graph.nodes if node[0] in RELEASED and node not in released | EXPLAINED.keys()]
    found = {node: [incompatibility(operation) for operation in graph.nodes[node].operations] for node in new}
    assert not {node: reasons for node, reasons in found.items() if any(reasons)}
    assert EXPLAINED.keys() <= graph.nodes.keys()


NUMBER: Final = models.IntegerField


def test_incompatible_operations_are_detected() -> None:
    for operation in [
        RemoveField("file", "length"),
        DeleteModel("file"),
        RenameField("file", "length", "size"),
        AddField("file", "length", NUMBER()),
        AddField("file", "length", NUMBER(default=3)),
        AlterField("file", "length", models.TextField()),
        AddConstraint("file", models.UniqueConstraint("length", name="one")),
        RunSQL("DROP TABLE file"),
        RunPython(RunPython.noop),
    ]:
        assert incompatibility(operation), operation.describe()


def test_compatible_operations_are_accepted() -> None:
    for operation in [
        AddField("file", "length", NUMBER(null=True)),
        AddField("file", "length", NUMBER(db_default=3)),
        AddIndex("file", models.Index("length", name="by_length")),
        RemoveIndex("file", "by_length"),
        AlterModelOptions("file", {"verbose_name": "paper"}),
        CreateModel("file", [("id", models.AutoField(primary_key=True))]),
    ]:
        assert not incompatibility(operation), operation.describe()
