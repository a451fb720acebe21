"""What the demo publishes for others."""

from typing import TypedDict

from messaging import Event


class OrderPlaced(TypedDict):
    """An order as it was placed."""

    order: int
    article: str


ORDER_PLACED = Event("orders.placed", OrderPlaced, description="A customer has placed an order.")
