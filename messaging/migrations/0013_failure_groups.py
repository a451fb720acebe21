import django.db.models.deletion
from django.db import migrations, models

import messaging.db.clock
import messaging.models.base


class Migration(migrations.Migration):
    dependencies = [
        ("messaging", "0012_payload_search"),
    ]

    operations = [
        migrations.CreateModel(
            name="FailureGroup",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("fingerprint", models.CharField(editable=False, max_length=32, unique=True)),
                ("exception_type", models.CharField(blank=True, max_length=255, verbose_name="exception")),
                ("frame", models.CharField(blank=True, max_length=255, verbose_name="place")),
                ("handler", models.CharField(blank=True, max_length=255, verbose_name="handler")),
                ("queue", messaging.models.base.NameField(blank=True, max_length=255, verbose_name="queue")),
                ("first_seen", models.DateTimeField(db_default=messaging.db.clock.Now(), verbose_name="first seen")),
                ("last_seen", models.DateTimeField(db_default=messaging.db.clock.Now(), verbose_name="last seen")),
                ("first_release", models.CharField(blank=True, max_length=100, verbose_name="first seen in release")),
                ("last_release", models.CharField(blank=True, max_length=100, verbose_name="last seen in release")),
                ("acted_at", models.DateTimeField(editable=False, null=True)),
                ("note", models.TextField(blank=True, verbose_name="note")),
                ("noted_by", models.CharField(blank=True, editable=False, max_length=255)),
                ("silenced_at", models.DateTimeField(editable=False, null=True, verbose_name="silenced")),
                ("silenced_until", models.DateTimeField(editable=False, null=True, verbose_name="silenced until")),
                ("silenced_in", models.JSONField(editable=False, null=True)),
                ("silenced_by", models.CharField(blank=True, editable=False, max_length=255)),
            ],
            options={
                "verbose_name": "failure group",
                "verbose_name_plural": "failure groups",
                "default_permissions": (),
                "indexes": [models.Index(fields=["last_seen", "id"], name="messaging_failure_group_seen")],
            },
        ),
        migrations.CreateModel(
            name="FailureCount",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("alias", messaging.models.base.NameField(max_length=100)),
                ("minute", models.PositiveIntegerField()),
                ("failed", models.PositiveIntegerField(default=0)),
                ("retried", models.PositiveIntegerField(default=0)),
                (
                    "group",
                    models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="count_set",
                        to="messaging.failuregroup",
                    ),
                ),
            ],
            options={
                "default_permissions": (),
                "indexes": [models.Index(fields=["minute"], name="messaging_failure_count_minute")],
                "constraints": [
                    models.UniqueConstraint(fields=("group", "minute", "alias"), name="messaging_failure_count_once")
                ],
            },
        ),
        migrations.AddField(
            model_name="operation",
            name="group",
            field=models.ForeignKey(
                db_constraint=False,
                db_index=False,
                null=True,
                on_delete=django.db.models.deletion.SET_NULL,
                related_name="operation_set",
                to="messaging.failuregroup",
            ),
        ),
        migrations.AddIndex(
            model_name="operation",
            index=models.Index(
                condition=models.Q(("group__isnull", False)), fields=["group"], name="messaging_operation_group"
            ),
        ),
        migrations.AddIndex(
            model_name="processedmessage",
            index=messaging.models.base.PolledIndex(
                condition=models.Q(("fingerprint", ""), _negated=True),
                fields=["fingerprint", "state", "id"],
                name="messaging_inbox_failures",
            ),
        ),
        migrations.RemoveIndex(
            model_name="processedmessage",
            name="messaging_inbox_fingerprint",
        ),
    ]
