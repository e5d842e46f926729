"""Split clients without layers: what they send is random, but it is what a codec makes of rows."""

import asyncio
import contextlib

import torch
from split_peer import connect

from sliceserve.codec.registry import build_codec
from sliceserve.configs import CodecConfig
from sliceserve.transport.frames import DataFrame
from sliceserve.transport.messages import Error, Opened, Times, Token

NUM_PROMPT = 4
_CODEC = CodecConfig(name="int8")


class Crowd:
    """Clients that are connected, spread over the cuts of an engine. Made by `gather`."""

    def __init__(self, peers, packets):
        self._peers = peers
        self._packets = packets

    async def talk(self, num_tokens, num_requests=1):
        """Let each have so many requests, one after the other, of so many tokens."""
        await asyncio.gather(*(self._talk(peer, num_tokens, num_requests) for peer in self._peers))

    async def _talk(self, peer, num_tokens, num_requests):
        for request_id in range(num_requests):
            await peer.open(request_id, NUM_PROMPT, max_tokens=num_tokens, ignore_eos=True)
            await _until(peer, Opened)
            await self._send(peer, request_id, 0, NUM_PROMPT)
            while (token := await _until(peer, Token)).finish_reason is None:
                await self._send(peer, request_id, token.position, 1)
            n = num_tokens - 1
            await peer.send(
                Times(num_tokens=n, head_us=n * 8000, encode_us=n * 900, link_us=n * 20000)
            )

    async def _send(self, peer, request_id, start, count):
        packets = self._packets[start : start + count]
        await peer.send(DataFrame(request_id, start, packets))


async def _until(peer, kind):
    while not isinstance(message := await peer.receive(), kind):
        assert not isinstance(message, Error), message
    return message


@contextlib.asynccontextmanager
async def gather(served, engine, num_clients):
    torch.manual_seed(0)
    codec = build_codec(_CODEC, engine.info.hidden_size)
    packets = codec.encode(torch.randn(64, engine.info.hidden_size))
    cuts = engine.info.cuts
    async with contextlib.AsyncExitStack() as stack:
        peers = [
            await stack.enter_async_context(
                connect(
                    served,
                    fingerprint=engine.info.fingerprint,
                    cut=cuts[i % len(cuts)],
                    codec=codec.wire_id,
                )
            )
            for i in range(num_clients)
        ]
        yield Crowd(peers, packets)
