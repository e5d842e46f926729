"""The client's end of /v1/split, by hand: messages out, messages in."""

import contextlib

import websockets

from sliceserve.configs import SamplingParams
from sliceserve.transport.frames import DataFrame, decode, encode
from sliceserve.transport.messages import (
    PROTOCOL_VERSION,
    SUBPROTOCOL,
    Hello,
    Open,
    Welcome,
)


class Peer:
    def __init__(self, socket):
        self.socket = socket

    async def send(self, message):
        await self.socket.send(message if isinstance(message, bytes | str) else encode(message))

    async def receive(self, kind=None):
        message = decode(await self.socket.recv())
        if kind is not None:
            assert isinstance(message, kind), message
        return message

    async def closed(self):
        """The close code of a socket that the server closes."""
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                await self.socket.recv()
        return self.socket.close_code

    async def open(self, request_id=1, num_prompt=3, outputs=(), prefix=(), priority=0, **sampling):
        sampling = SamplingParams(**{"max_tokens": 50, **sampling})
        await self.send(
            Open(
                request_id=request_id,
                num_prompt=num_prompt,
                sampling=sampling,
                outputs=list(outputs),
                prefix=list(prefix),
                priority=priority,
            )
        )

    async def data(self, start, count, request_id=1):
        await self.send(DataFrame(request_id, start, [b"packet"] * count))

    def lose(self):
        """As when a cable is pulled."""
        self.socket.transport.abort()


def hello(**changes):
    defaults = {"fingerprint": "f" * 64, "cut": 3, "codec": "float32/1"}
    return Hello(**{"protocol": PROTOCOL_VERSION, **defaults, **changes})


@contextlib.asynccontextmanager
async def dial(served, subprotocols=(SUBPROTOCOL,), **settings):
    """A socket without a handshake."""
    async with websockets.connect(
        served.split_url, subprotocols=list(subprotocols), compression=None, **settings
    ) as socket:
        yield Peer(socket)


@contextlib.asynccontextmanager
async def connect(served, headers=None, **changes):
    """A connection that has been welcomed."""
    async with dial(served, additional_headers=headers) as peer:
        await peer.send(hello(**changes))
        peer.welcome = await peer.receive(Welcome)
        yield peer
