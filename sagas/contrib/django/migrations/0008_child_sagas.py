"""The tables of the library's revision 0014: sagas that belong to a step of another saga."""

from django.db import migrations, models

from sagas.contrib.django.operations import UpgradeTables


class Migration(migrations.Migration):
    dependencies = [("sagas", "0007_schedules")]

    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[UpgradeTables("0014", before="0013")],
            state_operations=[
                migrations.AddField("saga", "parent_id", models.CharField(max_length=36, null=True)),
                migrations.AddField("saga", "parent_step", models.CharField(max_length=120, null=True)),
                migrations.AddField("saga", "root_id", models.CharField(max_length=36, null=True)),
                migrations.AddField("step", "child_id", models.CharField(max_length=36, null=True)),
            ],
        )
    ]
