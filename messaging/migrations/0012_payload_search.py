"""The function that reads a payload for the search, and what finds the messages of an operation by what became of them.

An index on the function is made by hand, where payloads are searched: it costs each write.
"""

from typing import Any

from django.db import migrations, models

# What is no JSON, or too large, holds nothing. A row is stored whatever the function makes of it.
CREATE = """
CREATE OR REPLACE FUNCTION messaging_payload(body text) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE STRICT COST 1000 AS $$
BEGIN
    IF octet_length(body) > 131072 OR left(ltrim(body, E' \\t\\r\\n'), 1) NOT IN ('{', '[') THEN
        RETURN NULL;
    END IF;
    RETURN body::jsonb;
EXCEPTION WHEN OTHERS THEN
    RETURN NULL;
END
$$
"""
DROP = "DROP FUNCTION IF EXISTS messaging_payload(text) CASCADE"


def create(_apps: Any, schema_editor: Any) -> None:
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(CREATE)


def drop(_apps: Any, schema_editor: Any) -> None:
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(DROP)


class Migration(migrations.Migration):
    dependencies = [
        ("messaging", "0011_counters"),
    ]

    operations = [
        migrations.RunPython(create, drop, elidable=False),
        migrations.AddIndex(
            model_name="operationitem",
            index=models.Index(fields=["operation", "result", "row"], name="messaging_operation_item_by"),
        ),
    ]
