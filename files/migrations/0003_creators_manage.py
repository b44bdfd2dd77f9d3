"""Until now all members of a tenant wrote to its collections. From here on they are private, first of all to who made them."""

from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps


MANAGER = 5


def grant_to_creators(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    collections = apps.get_model("files", "Collection").objects.filter(created_by__isnull=False)
    memberships = apps.get_model("tenants", "Membership").objects
    grants = apps.get_model("files", "Grant").objects
    for collection in collections.iterator():
        membership = memberships.filter(user=collection.created_by_id, tenant=collection.tenant_id).first()
        if membership:
            grants.create(
                collection=collection,
                user_id=collection.created_by_id,
                membership=membership,
                level=MANAGER,
                created_at=collection.created_at,
                created_by_id=collection.created_by_id,
            )


class Migration(migrations.Migration):
    dependencies = [("files", "0002_grants")]
    operations = [migrations.RunPython(grant_to_creators, migrations.RunPython.noop)]
