import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("files", "0004_grants_by_tenant")]
    operations = [
        migrations.AlterField(
            model_name="grant",
            name="tenant",
            field=models.ForeignKey(
                editable=False,
                help_text="the collection's, who never changes it",
                on_delete=django.db.models.deletion.CASCADE,
                related_name="+",
                to="tenants.tenant",
            ),
        ),
        migrations.AddIndex(
            model_name="grant",
            index=models.Index(models.F("tenant"), models.F("created_at"), models.F("id"), name="grant_in_tenant_by_age"),
        ),
    ]
