"""What was counted, as Prometheus reads it. Needs prometheus-client, which is imported when somebody asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from messaging.metrics.names import BOUNDS, FAMILIES, Family
from messaging.metrics.tally import Found

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

MISSING = (
    'Metrics need prometheus-client, which is not installed: python -m pip install "django-durable-messaging[metrics]".'
)


def require() -> None:
    """Raise ImportError, in words, where prometheus-client is missing."""
    try:
        import prometheus_client  # noqa: F401
    except ImportError as error:
        raise ImportError(MISSING) from error


class Collector:
    """Tells a registry of prometheus-client what was counted, at each scrape.

    Args:
        read: what there is now.
    """

    def __init__(self, read: Callable[[], Found]) -> None:
        self._read = read

    def describe(self) -> list[Metric]:
        """Nothing is read when it is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every metric that says anything, with all its series."""
        found = self._read()
        for family in FAMILIES:
            own = {labels: numbers for (name, labels), numbers in sorted(found.items()) if name == family.name}
            if own:
                yield _metric(family, own)


def registry(read: Callable[[], Found]) -> CollectorRegistry:
    """A registry of nothing else."""
    from prometheus_client import CollectorRegistry

    own = CollectorRegistry()
    own.register(Collector(read))
    return own


def page(read: Callable[[], Found], accept: str) -> tuple[bytes, str]:
    """The text of a scrape, and its type, as an `Accept` header wants it."""
    from prometheus_client.exposition import choose_encoder

    encode, content_type = choose_encoder(accept)
    return encode(registry(read)), content_type


def serve(read: Callable[[], Found], host: str, port: int) -> str:
    """Answer scrapes in threads of their own until the process ends, whatever path they ask for.

    Args:
        read: what there is now; called in those threads.
        host: the address to listen at; "" for all of them.
        port: 0 for any that is free.

    Returns the address, for people. Raises OSError, in words, where the port cannot be had.
    """
    from prometheus_client import start_http_server

    try:
        server, _ = start_http_server(port, host or "0.0.0.0", registry(read))  # noqa: S104  as it was asked to
    except (OSError, OverflowError) as error:
        raise OSError(f"Metrics cannot be served at {host or '*'}:{port}: {error}.") from error
    return f"http://{host or '*'}:{server.server_port}/metrics"


def _metric(family: Family, found: Mapping[tuple[str, ...], Sequence[float]]) -> Metric:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    kinds: dict[str, Any] = {
        "counter": CounterMetricFamily,
        "gauge": GaugeMetricFamily,
        "histogram": HistogramMetricFamily,
    }
    metric: Metric = kinds[family.kind](family.name, family.help, labels=family.labels)
    for labels, numbers in found.items():
        if family.kind == "histogram":
            _add_histogram(metric, labels, numbers)
        else:
            metric.add_metric(list(labels), numbers[0])  # type: ignore[attr-defined]
    return metric


def _add_histogram(metric: Any, labels: Sequence[str], numbers: Sequence[float]) -> None:
    ends = [*map(str, BOUNDS), "+Inf"]
    metric.add_metric(list(labels), list(zip(ends, accumulate(numbers[:-1]), strict=True)), numbers[-1])
