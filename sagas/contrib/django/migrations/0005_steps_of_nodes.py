"""The tables of the library's revision 0011: outlines, steps that nodes opened, and the field's names for columns."""

from django.db import migrations, models

from sagas.contrib.django.operations import UpgradeTables


class Migration(migrations.Migration):
    dependencies = [("sagas", "0004_causes_and_forms")]

    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[UpgradeTables("0011", before="0010")],
            state_operations=[
                migrations.RenameField("saga", "shape", "outline"),
                migrations.RenameField("saga", "stalls", "idle_checks"),
                migrations.RenameField("saga", "ready_at", "stage_ready_at"),
                migrations.RenameField("saga", "wake_at", "next_check_at"),
                migrations.RenameField("step", "name", "node"),
                migrations.RenameField("step", "position", "started_seq"),
                migrations.AddField("step", "item", models.IntegerField(null=True)),
                migrations.AddField("step", "seq", models.IntegerField(), preserve_default=False),
                migrations.AddField("step", "stage", models.IntegerField(), preserve_default=False),
                migrations.AddField("step", "kind", models.CharField(max_length=8), preserve_default=False),
                migrations.AlterField("step", "status", models.CharField(max_length=12)),
                migrations.RenameField("historyentry", "by", "actor"),
                migrations.RenameField("deadletter", "by", "actor"),
                migrations.RenameField("auditentry", "by", "actor"),
                migrations.RenameField("eventdeadletter", "by", "actor"),
                migrations.RenameModel("Suspect", "Redelivery"),
                migrations.AlterModelTable("redelivery", "events_redelivery"),
                migrations.RenameField("redelivery", "begun", "deliveries"),
                migrations.RenameModel("Reader", "ConsumerLease"),
                migrations.AlterModelTable("consumerlease", "events_consumer_lease"),
            ],
        )
    ]
