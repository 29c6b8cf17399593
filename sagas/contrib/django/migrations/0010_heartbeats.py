"""The tables of the library's revision 0016: what an attempt at a step reports while it runs."""

from django.db import migrations, models

from sagas.contrib.django.fields import PayloadField
from sagas.contrib.django.operations import UpgradeTables


class Migration(migrations.Migration):
    dependencies = [("sagas", "0009_fan_outs")]

    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[UpgradeTables("0016", before="0015")],
            state_operations=[
                migrations.AddField("step", "heartbeat_at", models.DateTimeField(null=True)),
                migrations.AddField("step", "heartbeat_details", PayloadField(null=True)),
                migrations.AddField("step", "progress_done", models.BigIntegerField(null=True)),
                migrations.AddField("step", "progress_total", models.BigIntegerField(null=True)),
            ],
        )
    ]
