from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("messaging", "0006_sendings_and_claims"),
    ]

    operations = [
        migrations.AddField(
            model_name="processedmessage",
            name="headers_digest",
            field=models.UUIDField(editable=False, null=True),
        ),
        migrations.AddField(
            model_name="processedmessage",
            name="nonce",
            field=models.UUIDField(editable=False, null=True),
        ),
        migrations.AddField(
            model_name="processedmessage",
            name="process_died",
            field=models.BooleanField(editable=False, null=True),
        ),
        migrations.AddField(
            model_name="processedmessage",
            name="dead_lettered",
            field=models.BooleanField(editable=False, null=True),
        ),
        migrations.AddField(
            model_name="publishedmessage",
            name="unrouted",
            field=models.BooleanField(editable=False, null=True),
        ),
        migrations.AddField(
            model_name="worker",
            name="is_stopping",
            field=models.BooleanField(editable=False, null=True),
        ),
        migrations.AddField(
            model_name="attempt",
            name="timed_out",
            field=models.BooleanField(editable=False, null=True),
        ),
    ]
