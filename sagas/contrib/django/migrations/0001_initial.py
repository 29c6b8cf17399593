"""The tables of the library's revision 0007, and the models that read them."""

import django.db.models.deletion
from django.db import migrations, models

from sagas.contrib.django.operations import UpgradeTables


class Migration(migrations.Migration):
    initial = True

    dependencies: list[tuple[str, str]] = []

    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[UpgradeTables("0007")],
            state_operations=[
                migrations.CreateModel(
                    name="AuditEntry",
                    fields=[
                        ("id", models.BigAutoField(primary_key=True, serialize=False)),
                        ("at", models.DateTimeField()),
                        ("by", models.CharField(max_length=200, null=True)),
                        ("what", models.CharField(max_length=50)),
                        ("detail", models.TextField()),
                        ("reason", models.TextField()),
                        ("count", models.BigIntegerField()),
                    ],
                    options={
                        "db_table": "sagas_audit",
                        "abstract": False,
                        "default_permissions": ("view",),
                    },
                ),
                migrations.CreateModel(
                    name="Event",
                    fields=[
                        ("position", models.BigAutoField(primary_key=True, serialize=False)),
                        ("stream", models.CharField(max_length=200)),
                        ("stream_version", models.IntegerField()),
                        ("event_id", models.CharField(max_length=36)),
                        ("type", models.CharField(max_length=100)),
                        ("version", models.IntegerField()),
                        ("data", models.TextField()),
                        ("metadata", models.TextField()),
                        ("recorded_at", models.DateTimeField()),
                    ],
                    options={
                        "db_table": "events_event",
                        "abstract": False,
                        "default_permissions": ("view",),
                    },
                ),
                migrations.CreateModel(
                    name="EventDeadLetter",
                    fields=[
                        ("id", models.BigAutoField(primary_key=True, serialize=False)),
                        ("queue", models.CharField(max_length=200)),
                        ("event_id", models.CharField(max_length=36)),
                        ("type", models.CharField(max_length=100)),
                        ("version", models.IntegerField()),
                        ("key", models.CharField(max_length=200, null=True)),
                        ("correlation_id", models.CharField(max_length=200)),
                        ("headers", models.TextField()),
                        ("body", models.TextField()),
                        ("error", models.TextField()),
                        ("attempts", models.IntegerField()),
                        ("behind", models.BigIntegerField(null=True)),
                        ("created_at", models.DateTimeField()),
                        ("resolved_at", models.DateTimeField(null=True)),
                        ("resolution", models.CharField(max_length=50, null=True)),
                        ("reason", models.TextField(null=True)),
                        ("by", models.CharField(max_length=200, null=True)),
                    ],
                    options={
                        "db_table": "events_dead_letter",
                        "abstract": False,
                        "default_permissions": ("view",),
                    },
                ),
                migrations.CreateModel(
                    name="EventSchema",
                    fields=[
                        ("subject", models.CharField(max_length=150, primary_key=True, serialize=False)),
                        ("revision", models.IntegerField()),
                        ("format", models.CharField(max_length=20)),
                        ("definition", models.TextField()),
                        ("fingerprint", models.CharField(max_length=64)),
                        ("owner", models.CharField(max_length=100)),
                        ("created_at", models.DateTimeField()),
                    ],
                    options={
                        "db_table": "events_schema",
                        "abstract": False,
                        "default_permissions": ("view",),
                    },
                ),
                migrations.CreateModel(
                    name="InboxMessage",
                    fields=[
                        ("queue", models.CharField(max_length=200, primary_key=True, serialize=False)),
                        ("event_id", models.CharField(max_length=36)),
                        ("type", models.CharField(max_length=100)),
                        ("version", models.IntegerField()),
                        ("source", models.CharField(max_length=100)),
                        ("correlation_id", models.CharField(max_length=200)),
                        ("causation_id", models.CharField(max_length=200, null=True)),
                        ("handled_at", models.DateTimeField()),
                    ],
                    options={
                        "db_table": "events_inbox",
                        "abstract": False,
                        "default_permissions": ("view",),
                    },
                ),
                migrations.CreateModel(
                    name="LiveProjection",
                    fields=[
                        ("name", models.CharField(max_length=100, primary_key=True, serialize=False)),
                        ("version", models.IntegerField()),
                        ("since", models.DateTimeField()),
                    ],
                    options={
                        "db_table": "events_projection_live",
                        "abstract": False,
                        "default_permissions": ("view",),
                    },
                ),
                migrations.CreateModel(
                    name="OutboxMessage",
                    fields=[
                        ("id", models.BigAutoField(primary_key=True, serialize=False)),
                        ("shard", models.IntegerField()),
                        ("event_id", models.CharField(max_length=36)),
                        ("type", models.CharField(max_length=100)),
                        ("version", models.IntegerField()),
                        ("source", models.CharField(max_length=100)),
                        ("key", models.CharField(max_length=200, null=True)),
                        ("correlation_id", models.CharField(max_length=200)),
                        ("causation_id", models.CharField(max_length=200, null=True)),
                        ("queue", models.CharField(max_length=200, null=True)),
                        ("body", models.TextField()),
                        ("created_at", models.DateTimeField()),
                        ("sent_at", models.DateTimeField(null=True)),
                    ],
                    options={
                        "db_table": "events_outbox",
                        "abstract": False,
                        "default_permissions": ("view",),
                    },
                ),
                migrations.CreateModel(
                    name="Projection",
                    fields=[
                        ("name", models.CharField(max_length=100, primary_key=True, serialize=False)),
                        ("version", models.IntegerField()),
                        ("position", models.BigIntegerField()),
                        ("failed_position", models.BigIntegerField(null=True)),
                        ("error", models.TextField(null=True)),
                        ("updated_at", models.DateTimeField()),
                    ],
                    options={
                        "db_table": "events_projection",
                        "abstract": False,
                        "default_permissions": ("view",),
                    },
                ),
                migrations.CreateModel(
                    name="Reader",
                    fields=[
                        ("queue", models.CharField(max_length=200, primary_key=True, serialize=False)),
                        ("owner", models.CharField(max_length=100)),
                        ("lease_until", models.DateTimeField()),
                    ],
                    options={
                        "db_table": "events_reader",
                        "abstract": False,
                        "default_permissions": ("view",),
                    },
                ),
                migrations.CreateModel(
                    name="Saga",
                    fields=[
                        ("id", models.CharField(max_length=36, primary_key=True, serialize=False)),
                        ("name", models.CharField(max_length=100)),
                        ("version", models.IntegerField()),
                        ("key", models.CharField(max_length=200)),
                        ("shape", models.TextField()),
                        ("correlation_id", models.CharField(max_length=200)),
                        ("input", models.TextField()),
                        (
                            "status",
                            models.CharField(
                                max_length=12,
                            ),
                        ),
                        (
                            "direction",
                            models.CharField(max_length=8),
                        ),
                        ("epoch", models.IntegerField()),
                        ("revision", models.IntegerField()),
                        ("stalls", models.IntegerField()),
                        ("error", models.TextField(null=True)),
                        ("created_at", models.DateTimeField()),
                        ("updated_at", models.DateTimeField()),
                        ("ready_at", models.DateTimeField()),
                        ("deadline", models.DateTimeField(null=True)),
                        ("wake_at", models.DateTimeField(null=True)),
                        ("traceparent", models.CharField(max_length=55, null=True)),
                    ],
                    options={
                        "db_table": "sagas_saga",
                        "ordering": ("-id",),
                        "permissions": (("operate_saga", "Can retry, skip, cancel, compensate and resume sagas"),),
                        "abstract": False,
                        "default_permissions": ("view",),
                    },
                ),
                migrations.CreateModel(
                    name="Snapshot",
                    fields=[
                        ("stream", models.CharField(max_length=200, primary_key=True, serialize=False)),
                        ("schema_version", models.IntegerField()),
                        ("stream_version", models.IntegerField()),
                        ("state", models.TextField()),
                        ("recorded_at", models.DateTimeField()),
                    ],
                    options={
                        "db_table": "events_snapshot",
                        "abstract": False,
                        "default_permissions": ("view",),
                    },
                ),
                migrations.CreateModel(
                    name="Stream",
                    fields=[
                        ("name", models.CharField(max_length=200, primary_key=True, serialize=False)),
                        ("version", models.IntegerField()),
                    ],
                    options={
                        "db_table": "events_stream",
                        "abstract": False,
                        "default_permissions": ("view",),
                    },
                ),
                migrations.CreateModel(
                    name="Suspect",
                    fields=[
                        ("queue", models.CharField(max_length=200, primary_key=True, serialize=False)),
                        ("event_id", models.CharField(max_length=36)),
                        ("begun", models.IntegerField()),
                        ("seen_at", models.DateTimeField()),
                    ],
                    options={
                        "db_table": "events_suspect",
                        "abstract": False,
                        "default_permissions": ("view",),
                    },
                ),
                migrations.CreateModel(
                    name="Step",
                    fields=[
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
                        ("name", models.CharField(max_length=100)),
                        (
                            "status",
                            models.CharField(
                                max_length=8,
                            ),
                        ),
                        ("position", models.IntegerField()),
                        ("failures", models.IntegerField()),
                        ("lost", models.IntegerField()),
                        ("owner", models.CharField(max_length=100, null=True)),
                        ("lease_until", models.DateTimeField(null=True)),
                        ("deadline", models.DateTimeField(null=True)),
                        ("due_at", models.DateTimeField(null=True)),
                        ("result", models.TextField(null=True)),
                        ("error", models.TextField(null=True)),
                        ("started_at", models.DateTimeField(null=True)),
                        ("finished_at", models.DateTimeField(null=True)),
                    ],
                    options={
                        "db_table": "sagas_step",
                        "abstract": False,
                        "default_permissions": ("view",),
                    },
                ),
                migrations.CreateModel(
                    name="HistoryEntry",
                    fields=[
                        ("id", models.BigAutoField(primary_key=True, serialize=False)),
                        ("at", models.DateTimeField()),
                        ("what", models.CharField(max_length=50)),
                        ("epoch", models.IntegerField()),
                        ("step", models.CharField(max_length=100, null=True)),
                        ("detail", models.TextField()),
                        ("by", models.CharField(max_length=200, null=True)),
                        (
                            "saga",
                            models.ForeignKey(
                                on_delete=django.db.models.deletion.DO_NOTHING, related_name="history", to="sagas.saga"
                            ),
                        ),
                    ],
                    options={
                        "verbose_name_plural": "history",
                        "db_table": "sagas_history",
                        "abstract": False,
                        "default_permissions": ("view",),
                    },
                ),
                migrations.CreateModel(
                    name="DeadLetter",
                    fields=[
                        ("id", models.BigAutoField(primary_key=True, serialize=False)),
                        ("step", models.CharField(max_length=100)),
                        ("direction", models.CharField(max_length=8)),
                        ("error", models.TextField()),
                        ("created_at", models.DateTimeField()),
                        ("resolved_at", models.DateTimeField(null=True)),
                        ("resolution", models.CharField(max_length=50, null=True)),
                        ("reason", models.TextField(null=True)),
                        ("by", models.CharField(max_length=200, null=True)),
                        (
                            "saga",
                            models.ForeignKey(
                                on_delete=django.db.models.deletion.DO_NOTHING,
                                related_name="dead_letters",
                                to="sagas.saga",
                            ),
                        ),
                    ],
                    options={
                        "db_table": "sagas_dead_letter",
                        "abstract": False,
                        "default_permissions": ("view",),
                    },
                ),
            ],
        ),
    ]
