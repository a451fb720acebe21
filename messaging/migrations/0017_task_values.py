from django.db import migrations, models

import messaging.db.clock
import messaging.models.base


class Migration(migrations.Migration):
    dependencies = [
        ("messaging", "0016_alerts"),
    ]

    operations = [
        migrations.CreateModel(
            name="TaskValue",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("alias", messaging.models.base.NameField(max_length=100)),
                ("queue", messaging.models.base.NameField(max_length=255)),
                ("key", models.UUIDField()),
                ("value", models.TextField()),
                ("created_at", models.DateTimeField(db_default=messaging.db.clock.Now(), editable=False)),
            ],
            options={
                "default_permissions": (),
                "indexes": [models.Index(fields=["created_at"], name="messaging_task_value_created")],
                "constraints": [
                    models.UniqueConstraint(fields=["alias", "queue", "key"], name="messaging_task_value_once")
                ],
            },
        ),
    ]
