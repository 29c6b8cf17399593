"""The tables of the library's revision 0012: what nodes need that decide, wait or fan out."""

from django.db import migrations, models

from sagas.contrib.django.fields import PayloadField
from sagas.contrib.django.operations import UpgradeTables


class Migration(migrations.Migration):
    dependencies = [("sagas", "0005_steps_of_nodes")]

    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[UpgradeTables("0012", before="0011")],
            state_operations=[
                migrations.AddField("step", "opened_at", models.DateTimeField(null=True)),
                migrations.AddField("step", "input", PayloadField(null=True)),
            ],
        )
    ]
