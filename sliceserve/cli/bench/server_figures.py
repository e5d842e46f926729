"""What a server says of itself."""

import httpx
from prometheus_client.parser import text_string_to_metric_families

from sliceserve.configs import ClientConfig


class ServerUnreadable(RuntimeError):
    """The server does not say what the benchmark must know."""


async def counters(config: ClientConfig) -> dict[str, float]:
    """The engine's counters in the server's /metrics, by name."""
    text = (await read(config, "/metrics")).decode()
    families = text_string_to_metric_families(text)
    return {
        family.name.removeprefix("sliceserve:"): family.samples[0].value
        for family in families
        if family.name.startswith("sliceserve:engine_")
    }


async def read(config: ClientConfig, path: str) -> bytes:
    """What the server of ``config`` answers. Raises ServerUnreadable."""
    url = config.server.rstrip("/").removesuffix("/v1") + path
    headers = {"Authorization": f"Bearer {config.api_key}"} if config.api_key else {}
    try:
        async with httpx.AsyncClient(headers=headers, timeout=config.timeout_s) as http:
            return (await http.get(url)).raise_for_status().content
    except httpx.HTTPError as error:
        raise ServerUnreadable(
            f"cannot read {url}: {error}; check that `sliceserve serve` runs there, and the API key"
        ) from error
