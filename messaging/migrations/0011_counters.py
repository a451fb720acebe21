from django.db import migrations, models

import messaging.models.base


class Migration(migrations.Migration):
    dependencies = [
        ("messaging", "0010_operations"),
    ]

    operations = [
        migrations.CreateModel(
            name="Counter",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("length", models.PositiveSmallIntegerField(default=1)),
                ("minute", models.PositiveIntegerField()),
                ("alias", messaging.models.base.NameField(max_length=100)),
                ("queue", messaging.models.base.NameField(blank=True, max_length=255)),
                ("published", models.PositiveIntegerField(default=0)),
                ("unpublished", models.PositiveIntegerField(default=0)),
                ("processed", models.PositiveIntegerField(default=0)),
                ("retried", models.PositiveIntegerField(default=0)),
                ("failed", models.PositiveIntegerField(default=0)),
                ("run_seconds", models.FloatField(default=0.0)),
            ],
            options={
                "default_permissions": (),
                "indexes": [models.Index(fields=["minute"], name="messaging_counter_minute")],
            },
        ),
    ]
