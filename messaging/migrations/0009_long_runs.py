from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("messaging", "0008_durations"),
    ]

    operations = [
        migrations.AddIndex(
            model_name="processedmessage",
            index=models.Index(
                condition=models.Q(("duration__gte", 1000000)),
                fields=["handler", "id"],
                name="messaging_inbox_long_runs",
            ),
        ),
    ]
