"""The rates as an SVG chart: horizontal bars in groups, each group on its own scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from xml.sax.saxutils import escape

OURS, FLOOR, PEER = "ours", "floor", "peer"
KINDS = {OURS: "django-durable-messaging", FLOOR: "raw driver or hand-written loop", PEER: "peer"}
# Bars by name of the rate: what it is, and its label.
GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "Publish one by one": {
        "publish": (OURS, "publish()"),
        "raw_confirm_each": (FLOOR, "pika, waiting for confirms"),
        "dramatiq_publish": (PEER, "Dramatiq"),
        "celery_publish": (PEER, "Celery"),
    },
    "Publish 500 at once": {
        "publish_many": (OURS, "publish_many()"),
        "raw_insert": (FLOOR, "psycopg, the same rows"),
    },
    "From the outbox to the broker": {
        "relay": (OURS, "relay"),
        "handwritten_relay": (FLOOR, "hand-written relay"),
        "raw_pipelined": (FLOOR, "pika alone, no database"),
    },
    "Consume, a transaction each": {
        "consume_best": (OURS, "consume, best concurrency"),
        "consume_single": (OURS, "consume, one worker"),
        "handwritten_consume": (FLOOR, "hand-written loop"),
        "dramatiq_consume": (PEER, "Dramatiq"),
        "celery_consume": (PEER, "Celery"),
    },
    "Consume, 500 in a transaction": {
        "consume_batch": (OURS, "@handler(batch=500)"),
        "handwritten_batch": (FLOOR, "hand-written loop"),
    },
    "End to end": {
        "end_to_end": (OURS, "outbox to inbox"),
        "celery_end_to_end": (PEER, "Celery"),
    },
    "Django's tasks on PostgreSQL": {
        "tasks_batch": (OURS, "our backend, batch=500"),
        "tasks": (OURS, "our backend"),
        "tasks_peer": (PEER, "django-tasks-db"),
    },
    "End to end on SQLite, no broker": {
        "embedded_batch": (OURS, "database://, batch=500"),
        "embedded": (OURS, "database://"),
        "huey": (PEER, "Huey, nothing recorded"),
        "huey_recorded": (PEER, "Huey, recorded"),
        "django_tasks": (PEER, "django-tasks-db"),
    },
}
WIDTH, LEFT, RIGHT = 760, 220, 90  # pixels: all, before the bars, after the longest
BAR, STEP, HEAD = 14, 20, 34  # pixels: a bar, from one to the next, a group's title
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2933; }
  .head { font-weight: 600; }
  .ours { fill: #0b6e4f; } .floor { fill: #9aa5b1; } .peer { fill: #d08c3c; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e4e7eb; } .ours { fill: #3ebd93; } .floor { fill: #7b8794; } .peer { fill: #e9b872; }
  }
"""


def svg(rates: Mapping[str, float]) -> str:
    """The chart of the rates that were measured, as a whole document."""
    groups = {title: [name for name in bars if name in rates] for title, bars in GROUPS.items()}
    lines = [line for title, names in groups.items() if names for line in _group(title, names, rates)]
    body, height, y = [], HEAD, HEAD
    for kind, text in lines:
        body.append(text.format(y=y, middle=y + BAR - 3, head=y + 18))
        y += HEAD - 8 if kind == "head" else STEP
        height = y
    description = "; ".join(_said(names, rates) for names in groups.values() if names)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height + 12}" role="img">',
            "<title>Messages a second</title>",
            f"<desc>{escape(description)}</desc>",
            f"<style>{STYLE}</style>",
            *_legend(),
            *body,
            "</svg>\n",
        ]
    )


def _legend() -> Iterator[str]:
    x = 8
    for kind, label in KINDS.items():
        yield f'<rect class="{kind}" x="{x}" y="8" width="12" height="12" rx="2"/>'
        yield f'<text x="{x + 18}" y="19">{escape(label)}</text>'
        x += 40 + 7 * len(label)


def _group(title: str, names: list[str], rates: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    yield "head", f'<text class="head" x="8" y="{{head}}">{escape(title)}</text>'
    longest = max(rates[name] for name in names)
    for name in names:
        kind, label = GROUPS[title][name]
        width = max(1.0, rates[name] / longest * (WIDTH - LEFT - RIGHT))
        parts = [
            f'<text x="{LEFT - 8}" y="{{middle}}" text-anchor="end">{escape(label)}</text>',
            f'<rect class="{kind}" x="{LEFT}" y="{{y}}" width="{width:.1f}" height="{BAR}" rx="2"/>',
            f'<text x="{LEFT + width + 6:.1f}" y="{{middle}}">{rates[name]:,.0f}</text>',
        ]
        yield "bar", "".join(parts)


def _said(names: list[str], rates: Mapping[str, float]) -> str:
    labels = {name: label for bars in GROUPS.values() for name, (_, label) in bars.items()}
    return ", ".join(f"{labels[name]} {rates[name]:,.0f}" for name in names)
