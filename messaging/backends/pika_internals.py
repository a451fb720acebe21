"""What `backends/rabbitmq/` uses of pika that pika does not document, and whether the installed pika still has it.

pika's own reading loses values of headers, drops the connection over some, and costs a third more for each message: so
`frames` reads and writes through methods that pika calls inside. A version that renamed one of them would call its own
instead of ours: nothing would fail, and nothing would ever arrive. So they are looked for before the first connection.
"""

from __future__ import annotations

from importlib.metadata import version

from messaging.conf.installed import lacking
from messaging.exceptions import ConfigurationError

TESTED = "pika>=1.4,<1.5"

USED = {
    "pika.adapters.select_connection.SelectConnection": (
        # replaced, or called, to read and write frames ourselves
        "_on_data_available", "_process_frame", "_adapter_emit_data", "_get_write_buffer_size",
        # to read more at once, to pause reading, to drop the connection without a farewell
        "_proto_connection_made", "_terminate_stream", "_adapter_call_later",
    ),
    "pika.adapters.utils.io_services_utils._AsyncTransportBase": ("_MAX_RECV_BYTES", "_STATE_ACTIVE"),
    "pika.adapters.utils.io_services_utils._AsyncPlaintextTransport": ("_on_socket_readable",),
    "pika.adapters.utils.io_services_utils._AsyncSSLTransport": ("_on_socket_readable",),
    # requests of ours whose answer we want
    "pika.channel.Channel": ("_rpc", "_send_method"),
    # which of a connection's troubles it was
    "pika.adapters.utils.connection_workflow": (
        "AMQPConnectorStackTimeout", "AMQPConnectionWorkflowFailed", "AMQPConnectorPhaseErrorBase",
    ),
}  # fmt: skip

# Attributes of instances.
GIVEN = {
    # how many bytes went by, of which pika's heartbeat makes whether the peer lives; what a connection consists of
    "pika.adapters.select_connection.SelectConnection": ("bytes_received", "bytes_sent", "_transport", "_channels"),
    "pika.adapters.utils.io_services_utils._AsyncTransportBase": ("_state", "_sock", "_nbio"),
    # whose messages pika must not reject when a connection is closed
    "pika.channel.Channel": ("_consumers",),
}


def require() -> None:
    """Raise ConfigurationError, with what to install, where the installed pika lacks something of this."""
    gone = lacking(USED, GIVEN)
    if gone:
        raise ConfigurationError(
            f"pika {version('pika')} cannot be used: it has no {', '.join(gone)}. Install {TESTED}, which was tested."
        )
