"""The tables of the library's revision 0010: what started a saga, and of which form a snapshot is."""

from django.db import migrations, models

from sagas.contrib.django.operations import UpgradeTables


class Migration(migrations.Migration):
    dependencies = [("sagas", "0003_inbox_by_source")]

    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[UpgradeTables("0010", before="0009")],
            state_operations=[
                migrations.AddField("saga", "caused_by", models.TextField(null=True)),
                migrations.AddField("snapshot", "form", models.CharField(max_length=64, null=True)),
            ],
        )
    ]
