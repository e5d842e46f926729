"""What an answer cost, as a table."""

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from sliceserve.client.stats import RequestStats, SessionStats


def server_share(stats: "SessionStats") -> float:
    """The server's part of the busy time of both sides, 0 to 1."""
    busy = stats.total.server_s + stats.total.head_s
    return stats.total.server_s / busy if busy else 0.0


def _kept(total: "RequestStats") -> str:
    return f"{total.num_cached_head} tokens here, {total.num_cached_server} not sent"


def cost_table(stats: "SessionStats", split: int, num_layers: int, codec: str) -> Table:
    total = stats.total
    requests, tokens = max(1, total.num_requests), max(1, total.num_tokens)
    table = Table(show_header=False)
    rows = [
        ("prompt and answer", f"{total.num_prompt_tokens} + {total.num_tokens} tokens"),
        ("speed", f"{total.tokens_per_s:.1f} tokens/s after the first"),
        ("time to first token", f"{1e3 * total.ttft_s / requests:.0f} ms"),
        ("layers", f"{split} here, {num_layers - split} on the server"),
        ("kept from earlier", _kept(total)),
        ("uplink per token", f"{stats.uplink_bytes_per_token:.0f} bytes by {codec}"),
        ("against fp16", f"{stats.uplink_reduction_vs_fp16:.1f} times fewer bytes"),
        ("busy per token, here", f"{1e3 * total.head_s / tokens:.1f} ms"),
        ("busy per token, server", f"{1e3 * total.server_s / tokens:.1f} ms"),
        ("link per token", f"{1e3 * total.link_s / tokens:.1f} ms"),
        ("server's share of the work", f"{server_share(stats):.0%}"),
    ]
    for row in rows:
        table.add_row(*row)
    return table
