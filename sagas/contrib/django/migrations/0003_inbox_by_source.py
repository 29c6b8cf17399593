"""The inbox knows messages by source and id; bindings are remembered; and messages that reached nobody are marked."""

from django.db import migrations, models

from sagas.contrib.django.operations import UpgradeTables


class Migration(migrations.Migration):
    dependencies = [("sagas", "0002_arrivals")]

    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[UpgradeTables("0009", before="0008")],
            state_operations=[
                migrations.AddField("inboxmessage", "digest", models.CharField(max_length=64, null=True)),
                migrations.AddField("outboxmessage", "heard", models.BooleanField(null=True)),
                migrations.CreateModel(
                    name="Binding",
                    fields=[
                        ("queue", models.CharField(max_length=200, primary_key=True, serialize=False)),
                        ("topic", models.CharField(max_length=150)),
                        ("exchange", models.CharField(max_length=200)),
                        ("declared_at", models.DateTimeField()),
                        ("removed_at", models.DateTimeField(null=True)),
                    ],
                    options={"db_table": "events_binding", "abstract": False, "default_permissions": ("view",)},
                ),
            ],
        ),
    ]
