from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("messaging", "0007_nonces_and_digests"),
    ]

    operations = [
        migrations.AddField(
            model_name="processedmessage",
            name="duration",
            field=models.BigIntegerField(editable=False, null=True, verbose_name="run"),
        ),
        migrations.AddField(
            model_name="worker",
            name="running",
            field=models.JSONField(editable=False, null=True, verbose_name="running"),
        ),
    ]
