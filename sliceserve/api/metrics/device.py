"""What a gateway knows of its line to the server, as of the scrape."""

from collections.abc import Iterator

from prometheus_client.core import Metric

from sliceserve.api.metrics.engine import counter, token_time_metrics
from sliceserve.client.stats import SessionStats


def session_metrics(session: SessionStats) -> Iterator[Metric]:
    """The same series as a server's, seen from the other end."""
    total = session.total
    num_packets = total.num_packets
    yield counter("split_uplink_bytes", "Bytes to the server.", total.bytes_up)
    yield counter("split_downlink_bytes", "Bytes from the server.", total.bytes_down)
    yield counter("split_uplink_tokens", "Hidden states to the server.", num_packets)
    yield counter(
        "split_uplink_fp16_bytes",
        "Bytes that these hidden states have in fp16.",
        num_packets * session.fp16_bytes_per_token,
    )
    yield counter("split_reconnects", "Lost connections that came back.", session.num_reconnects)
    parts = total.parts
    yield from token_time_metrics(
        "split", [(name, seconds, parts.num_tokens) for name, seconds in parts.seconds.items()]
    )
