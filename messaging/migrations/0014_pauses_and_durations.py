from django.db import migrations, models

STEPS = 21  # of the histograms; models/counting.py says which


class Migration(migrations.Migration):
    dependencies = [
        ("messaging", "0013_failure_groups"),
    ]

    operations = [
        *(
            migrations.AddField("counter", f"{kind}_{step:02}", models.PositiveIntegerField(null=True))
            for kind in ("wait", "run")
            for step in range(STEPS)
        ),
        migrations.AddField("worker", "oldest", models.JSONField(editable=False, null=True)),
        migrations.AddField("publishedmessage", "tries", models.TextField(editable=False, null=True)),
    ]
