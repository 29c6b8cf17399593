"""The tables of the library's revision 0008."""

from django.db import migrations, models

from sagas.contrib.django.operations import UpgradeTables


class Migration(migrations.Migration):
    dependencies = [("sagas", "0001_initial")]

    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[UpgradeTables("0008", before="0007")],
            state_operations=[
                migrations.AddField("Saga", "dispatches", models.IntegerField(default=1), preserve_default=False),
                migrations.AddField("Step", "sent_at", models.DateTimeField(null=True)),
                migrations.CreateModel(
                    name="Arrival",
                    fields=[
                        ("task", models.CharField(max_length=255, primary_key=True, serialize=False)),
                        ("sent_at", models.DateTimeField()),
                    ],
                    options={
                        "db_table": "sagas_arrival",
                        "abstract": False,
                        "default_permissions": ("view",),
                    },
                ),
            ],
        ),
    ]
