"""What payloads are: the types that they arrive as and are sent from, their versions, and who is told of them."""
