"""Measure every cut that the server offers, and say which suits this device and this line.

More layers here mean less work for the server, and more for this device. The bytes on the wire
hardly change: a hidden state has the same size after every layer.

    sliceserve serve --cuts 4,8,15,22
    python examples/choosing_a_cut.py [http://127.0.0.1:8000]
"""

import sys

import httpx

from sliceserve import SplitLLM
from sliceserve.client import RequestStats

# A cut that costs less speed than this is worth it if it spares the server layers.
NOTICEABLE = 0.1


def measure(url: str, cut: int) -> RequestStats:
    with SplitLLM(url, split=cut) as llm:
        llm.generate("The first call warms both sides up.", max_tokens=8)
        return llm.generate("A short history of the bicycle:", max_tokens=48).stats


url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
offered = httpx.get(f"{url}/v1/split/info").raise_for_status().json()
print(f"{offered['model']}, {offered['num_layers']} layers; milliseconds a token:")
print("layers here   here  link  server   tokens/s   bytes up")
measured = {}
for cut in offered["cuts"]:
    stats = measured[cut] = measure(url, cut)
    here, link, server = (
        1e3 * seconds / stats.num_tokens for seconds in (stats.head_s, stats.link_s, stats.server_s)
    )
    print(
        f"{cut:11}  {here:5.1f} {link:5.1f} {server:7.1f}"
        f"  {stats.tokens_per_s:9.1f}  {stats.uplink_bytes_per_token:9.0f}"
    )
fastest = max(stats.tokens_per_s for stats in measured.values())
best = max(c for c, stats in measured.items() if stats.tokens_per_s >= fastest * (1 - NOTICEABLE))
print(f"Take split={best}: the most layers here that cost no noticeable speed.")
