import django.db.models.deletion
from django.db import migrations, models

import messaging.db.clock
import messaging.models.base


class Migration(migrations.Migration):
    dependencies = [
        ("messaging", "0015_editing_and_rehearsals"),
    ]

    operations = [
        migrations.CreateModel(
            name="Alert",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("kind", models.CharField(max_length=50)),
                ("subject", messaging.models.base.NameField(blank=True, max_length=255)),
                ("level", models.CharField(blank=True, max_length=10)),
                ("words", models.TextField(blank=True)),
                ("fix", models.TextField(blank=True)),
                ("link", models.CharField(blank=True, max_length=255)),
                ("began_at", models.DateTimeField(db_default=messaging.db.clock.Now())),
                ("ended_at", models.DateTimeField(null=True)),
                ("told_at", models.DateTimeField(null=True)),
                ("is_told", models.BooleanField(db_default=False, default=False)),
                ("version", models.PositiveIntegerField(db_default=0, default=0)),
            ],
            options={
                "default_permissions": (),
                "constraints": [models.UniqueConstraint(fields=["kind", "subject"], name="messaging_alert_once")],
            },
        ),
        migrations.CreateModel(
            name="AlertMessage",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("channel", models.CharField(max_length=64)),
                ("content", models.JSONField()),
                ("attempts", models.PositiveSmallIntegerField(default=0)),
                ("due_at", models.DateTimeField(db_default=messaging.db.clock.Now())),
                ("token", models.UUIDField(null=True)),
                ("error", models.TextField(blank=True)),
                (
                    "alert",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="message_set", to="messaging.alert"
                    ),
                ),
            ],
            options={
                "default_permissions": (),
                "constraints": [
                    models.UniqueConstraint(fields=["alert", "channel"], name="messaging_alert_message_once")
                ],
            },
        ),
    ]
