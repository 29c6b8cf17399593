"""The tables of the library's revision 0013: schedules and their ticks."""

from django.db import migrations, models

from sagas.contrib.django.operations import UpgradeTables


class Migration(migrations.Migration):
    dependencies = [("sagas", "0006_nodes_that_wait")]

    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[UpgradeTables("0013", before="0012")],
            state_operations=[
                migrations.CreateModel(
                    "Schedule",
                    [
                        ("name", models.CharField(max_length=100, primary_key=True, serialize=False)),
                        ("saga", models.CharField(max_length=100)),
                        ("cron", models.CharField(max_length=200)),
                        ("timezone", models.CharField(max_length=100)),
                        ("next_at", models.DateTimeField()),
                        ("waiting", models.DateTimeField(null=True)),
                        ("paused_at", models.DateTimeField(null=True)),
                        ("paused_by", models.CharField(max_length=200, null=True)),
                        ("paused_why", models.TextField(null=True)),
                        ("seen_at", models.DateTimeField()),
                        ("revision", models.IntegerField()),
                    ],
                    options={
                        "db_table": "sagas_schedule",
                        "ordering": ("name",),
                        "permissions": (("operate_schedule", "Can pause, resume and run schedules"),),
                        "abstract": False,
                        "default_permissions": ("view",),
                    },
                ),
                migrations.CreateModel(
                    "Tick",
                    [
                        ("schedule", models.CharField(max_length=100, primary_key=True, serialize=False)),
                        ("at", models.DateTimeField()),
                        ("outcome", models.CharField(max_length=8)),
                        ("why", models.TextField()),
                        ("saga_id", models.CharField(max_length=36, null=True)),
                        ("decided_at", models.DateTimeField()),
                        ("actor", models.CharField(max_length=200, null=True)),
                    ],
                    options={"db_table": "sagas_tick", "abstract": False, "default_permissions": ("view",)},
                ),
            ],
        )
    ]
