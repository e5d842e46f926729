"""How a client comes to hold the profile that its packets are made by."""

import asyncio
from collections.abc import Awaitable, Callable

from sliceserve.client.errors import SplitError
from sliceserve.codec.profile_store import ProfileStore, digest_of, is_digest
from sliceserve.transport.websocket import split_url, tls_context

# From a digest to the bytes that it stands for, unchecked. Raises SplitError.
FetchProfile = Callable[[str], Awaitable[bytes]]

MAX_PROFILE_BYTES = 1 << 30


async def hold_profile(store: ProfileStore, digest: str, fetch: FetchProfile) -> None:
    """Fetch a profile into the store unless it is there. Raises SplitError."""
    if not is_digest(digest):
        raise SplitError(f"the server named a codec profile {digest[:80]!r}, which is no sha256")
    if await asyncio.to_thread(store.get, digest) is not None:
        return
    data = await fetch(digest)
    if (found := await asyncio.to_thread(digest_of, data)) != digest:
        raise SplitError(
            f"the codec profile {digest} came with sha256 {found}: it was damaged on its way or "
            "on the server; try again, or choose a codec without a profile"
        )
    try:
        await asyncio.to_thread(store.put, data)
    except OSError as error:
        raise SplitError(
            f"the codec profile cannot be kept in {store.folder}: {error}; set SLICESERVE_CACHE "
            "to a folder with room for it"
        ) from error


async def fetch_profile(
    server: str,
    api_key: str | None,
    timeout_s: float,
    digest: str,
    *,
    ca_certs: str | None = None,
) -> bytes:
    """Get a profile from the server at base address ``server``, which may be silent for
    ``timeout_s`` seconds. ``ca_certs`` as in `tls_context`. Raises SplitError."""
    # Slow to import, and needed once for a model.
    import httpx

    url = f"{split_url(server).replace('ws', 'http', 1)}/profiles/{digest}"
    headers = {"Accept-Encoding": "identity"}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key}"
    verify = tls_context(ca_certs) if url.startswith("https:") else True
    data = bytearray()
    try:
        async with (
            httpx.AsyncClient(headers=headers, timeout=timeout_s, verify=verify) as http,
            http.stream("GET", url) as answer,
        ):
            if answer.status_code != 200:
                raise SplitError(
                    f"the codec profile cannot be had: {url} answered with HTTP "
                    f"{answer.status_code}; ask who runs the server, or choose another codec"
                )
            async for chunk in answer.aiter_raw():
                data += chunk
                if len(data) > MAX_PROFILE_BYTES:
                    raise SplitError(
                        f"the codec profile at {url} has more than {MAX_PROFILE_BYTES} bytes; "
                        "choose another codec"
                    )
    except httpx.HTTPError as error:
        why = str(error) or type(error).__name__
        raise SplitError(
            f"the codec profile could not be fetched from {url}: {why}; try again"
        ) from error
    return bytes(data)
