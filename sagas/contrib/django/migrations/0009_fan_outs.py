"""The tables of the library's revision 0015: sagas that are one of many items of a step."""

import django.db.models.deletion
from django.db import migrations, models

from sagas.contrib.django.operations import UpgradeTables


class Migration(migrations.Migration):
    dependencies = [("sagas", "0008_child_sagas")]

    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[UpgradeTables("0015", before="0014")],
            state_operations=[
                migrations.AddField("saga", "parent_item", models.IntegerField(null=True)),
                migrations.AddField("saga", "place_passed", models.IntegerField(null=True)),
                migrations.CreateModel(
                    "FanOut",
                    [
                        (
                            "saga",
                            models.OneToOneField(
                                on_delete=django.db.models.deletion.DO_NOTHING,
                                primary_key=True,
                                related_name="+",
                                serialize=False,
                                to="sagas.saga",
                            ),
                        ),
                        ("step", models.CharField(max_length=120)),
                        ("items", models.IntegerField()),
                        ("next_item", models.IntegerField()),
                    ],
                    options={"db_table": "sagas_fan_out", "abstract": False, "default_permissions": ("view",)},
                ),
            ],
        )
    ]
