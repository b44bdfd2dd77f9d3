"""A grant says whose it is, so that nothing has to be joined to find out. The next migration makes it required."""

import django.db.models.deletion
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps


def copy_tenants(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    collections = apps.get_model("files", "Collection").objects.filter(pk=models.OuterRef("collection"))
    apps.get_model("files", "Grant").objects.update(tenant=models.Subquery(collections.values("tenant")))


class Migration(migrations.Migration):
    dependencies = [("files", "0003_creators_manage"), ("tenants", "0003_who_may_act")]
    operations = [
        migrations.AddField(
            model_name="grant",
            name="tenant",
            field=models.ForeignKey(
                editable=False,
                null=True,
                help_text="the collection's, who never changes it",
                on_delete=django.db.models.deletion.CASCADE,
                related_name="+",
                to="tenants.tenant",
            ),
        ),
        migrations.RunPython(copy_tenants, migrations.RunPython.noop),
    ]
