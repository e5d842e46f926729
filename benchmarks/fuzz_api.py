"""Hostile requests for every POST route and the split socket of a server, with good clients beside.

Bodies and messages that are right are damaged: fields are lost, renamed, nested deep, given huge
numbers, half of a surrogate pair, other types; bytes are flipped, cut and spliced; lengths, chunks,
content types and frames of WebSockets lie. No answer may be a 500 and no process may end; whoever
sends what is right gets the same answer all the time; and nothing is live afterwards. The last line
is JSON; the status is 1 if any promise was broken.

    python benchmarks/fuzz_api.py --seconds 60
"""

import argparse
import asyncio
import contextlib
import json
import math
import os
import random
import re
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
import psutil
import websockets
from hostile_input import BODIES, damage, mutate
from prometheus_client.parser import text_string_to_metric_families

from sliceserve.cli.local_server import local_server
from sliceserve.cli.signals import end_on_sigterm
from sliceserve.configs import DEFAULT_MODEL, SamplingParams
from sliceserve.models.resolve import resolve_model
from sliceserve.models.spec import ModelSpec
from sliceserve.transport.frames import DataFrame, decode, encode
from sliceserve.transport.link import CloseCode
from sliceserve.transport.messages import (
    PROTOCOL_VERSION,
    SUBPROTOCOL,
    Bye,
    Cancel,
    Control,
    Error,
    Hello,
    Open,
    Opened,
    Token,
    Welcome,
)

_CONTENT_TYPES = (
    "text/plain",
    "application/json; charset=utf-16",
    "multipart/form-data",
    "application/x-www-form-urlencoded",
    "application/problem+json",
    "",
)
# How long an answer is waited for; then the client goes away in the middle.
PATIENCE_S = 4.0
_QUIET_TIMEOUT_S = 60.0
# What clients that vanish leave behind is forgotten by then.
_DETACHED_S = 2.0


@dataclass(frozen=True)
class Place:
    """A server to attack. ``packet`` is the packet of one token, for the codec float32."""

    url: str
    api_key: str
    model: str
    info: dict[str, Any]
    packet: bytes

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"}


@dataclass
class Tally:
    """What has happened. ``broken`` are promises that were, in words."""

    answers: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    num_good: int = 0
    broken: list[str] = field(default_factory=list)


# --- HTTP


def write_json(body: Any, rng: random.Random) -> bytes:
    if rng.random() < 0.2:
        return json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return json.dumps(body).encode(rng.choice(("utf-8",) * 9 + ("utf-16",)))


def draw_request(place: Place, rng: random.Random) -> tuple[bytes, bool]:
    """A request as it stands on the wire, and whether it is HTTP that must be answered."""
    path = rng.choice(list(BODIES))
    donors = [body for bodies in BODIES.values() for body in bodies]
    body: Any = {"model": place.model, **rng.choice(BODIES[path])}
    if rng.random() < 0.85:
        body = mutate(body, rng, donors)
    data = write_json(body, rng)
    if rng.random() < 0.25:
        data = damage(data, rng)
    kind = "application/json" if rng.random() < 0.9 else rng.choice(_CONTENT_TYPES)
    head = f"POST {path} HTTP/1.1\r\nHost: fuzz\r\nConnection: close\r\nContent-Type: {kind}\r\n"
    head += f"Authorization: Bearer {place.api_key}\r\n"
    framing, payload, is_http = _frame_body(data, rng)
    return head.encode() + framing + b"\r\n" + payload, is_http


def _frame_body(data: bytes, rng: random.Random) -> tuple[bytes, bytes, bool]:
    """Headers that say how long the body is, the body, and whether they are true."""
    length = b"Content-Length: %d\r\n"
    if (kind := rng.random()) < 0.75:
        return length % len(data), data, True
    if kind < 0.85:
        return b"Transfer-Encoding: chunked\r\n", _chunked(data, rng) + b"0\r\n\r\n", True
    lies: tuple[tuple[bytes, bytes], ...] = (
        (length % (len(data) + 5), data),
        (length % (len(data) // 2), data),
        (b"Content-Length: -1\r\n", data),
        (b"Content-Length: many\r\n", data),
        (length % len(data) + length % (len(data) + 1), data),
        (length % (1 << 62), data),
        (b"Transfer-Encoding: chunked\r\n", damage(_chunked(data, rng), rng)),
        (b"Transfer-Encoding: chunked\r\n", b"fffffffffffffffff\r\n" + data),
        (b"Transfer-Encoding: chunked\r\n" + length % 3, _chunked(data, rng)),
        (b"Content-Encoding: gzip\r\n" + length % len(data), data),
        (b"Expect: 100-continue\r\n" + length % len(data), data),
        (b"", data),
    )
    return *rng.choice(lies), False


def _chunked(data: bytes, rng: random.Random) -> bytes:
    pieces = b""
    while data:
        size = rng.randint(1, len(data))
        pieces += b"%x\r\n%b\r\n" % (size, data[:size])
        data = data[size:]
    return pieces


async def attack_http(place: Place, rng: random.Random, tally: Tally) -> None:
    """One request."""
    request, is_http = draw_request(place, rng)
    answer, is_whole = await _exchange(place, request)
    status = re.match(rb"HTTP/1\.1 (\d{3})", answer)
    tally.answers[status[1].decode() if status else "none"] += 1
    if status is None:
        if is_http and is_whole:
            tally.broken.append(f"no answer to {request[:2000]!r}")
    elif int(status[1]) >= 500 or b'"internal_error"' in answer:
        tally.broken.append(f"{answer[:300]!r} to {request[:2000]!r}")


async def _exchange(place: Place, request: bytes) -> tuple[bytes, bool]:
    """What came within the client's patience, and whether that was all."""
    target = urlsplit(place.url)
    reader, writer = await asyncio.open_connection(target.hostname, target.port)
    answer = b""
    try:
        writer.write(request)
        if writer.can_write_eof() and b"Content-Length: " not in request:
            await writer.drain()
        deadline = time.monotonic() + PATIENCE_S
        while data := await asyncio.wait_for(
            reader.read(1 << 16), max(0.01, deadline - time.monotonic())
        ):
            answer += data
        return answer, True
    except asyncio.TimeoutError:
        return answer, False
    except ConnectionError:
        return answer, bool(answer)
    finally:
        writer.transport.abort()


# --- The split socket


def draw_messages(place: Place, rng: random.Random, resume_token: str | None) -> list[bytes]:
    """What one connection says: a conversation, parts of it damaged."""
    num_prompt = rng.randrange(1, 6)
    sampling = SamplingParams(max_tokens=rng.randrange(1, 4), seed=rng.randrange(9))
    messages: list[Control | DataFrame] = [
        hello(place, resume_token),
        Open(request_id=1, num_prompt=num_prompt, sampling=sampling),
        DataFrame(1, 0, [place.packet] * num_prompt),
        Open(request_id=2, num_prompt=2, sampling=sampling, outputs=[5, 6]),
        DataFrame(2, rng.randrange(3), [place.packet] * 3),
        DataFrame(1, num_prompt, [place.packet]),
        Cancel(request_id=rng.randrange(1, 4)),
        Bye(),
    ]
    written = [encode(message) for message in messages]
    if rng.random() < 0.2:
        rng.shuffle(written)
    harm = rng.choice((0.05, 0.3))
    return [_damage_message(data, rng) if rng.random() < harm else data for data in written]


def hello(place: Place, resume_token: str | None = None) -> Hello:
    return Hello(
        protocol=PROTOCOL_VERSION,
        fingerprint=place.info["fingerprint"],
        cut=place.info["cuts"][0],
        codec="float32/1",
        resume_token=resume_token,
    )


def _damage_message(data: bytes, rng: random.Random) -> bytes:
    is_frame = data[0] >= 0x80
    if is_frame and rng.random() < 0.5:
        # A frame whose checksum is right, so that its fields are read.
        harmed = data[:1] + data[5 : 5 + rng.randrange(1, 8)] + damage(data[9:], rng)
        return harmed[:1] + zlib.crc32(harmed).to_bytes(4, "little") + harmed[1:]
    if not is_frame and rng.random() < 0.7:
        body = mutate(msgspec.msgpack.decode(data[1:]), rng, [{"a": [1, b"x", {"b": "c"}]}])
        with contextlib.suppress(OverflowError, UnicodeEncodeError, RecursionError):
            return data[:1] + msgspec.msgpack.encode(body)
    return damage(data, rng)


async def attack_socket(place: Place, rng: random.Random, tally: Tally, tokens: list[str]) -> None:
    """One connection. ``tokens`` are those of sessions that there were."""
    resume = rng.choice(tokens) if tokens and rng.random() < 0.3 else None
    async with _dial(place) as socket:
        with contextlib.suppress(websockets.ConnectionClosed, asyncio.TimeoutError):
            for data in draw_messages(place, rng, resume):
                await socket.send(data if rng.random() < 0.99 else data.decode("latin-1"))
                if rng.random() < 0.03:
                    # No frame of a WebSocket.
                    socket.transport.write(rng.randbytes(30))
            while True:
                message = decode(await asyncio.wait_for(socket.recv(), 0.3))
                if isinstance(message, Welcome):
                    tokens[rng.randrange(len(tokens) + 1) :] = [message.resume_token]
                elif isinstance(message, Error):
                    tally.endings[message.code] += 1
                    if message.code == "internal_error":
                        tally.broken.append(f"the socket was told {message}")
        code = socket.close_code
    tally.endings["left open" if code is None else f"closed with {code}"] += 1
    if code == CloseCode.INTERNAL_ERROR:
        tally.broken.append("a socket was closed with 1011, internal error")


@contextlib.asynccontextmanager
async def _dial(place: Place) -> Any:
    url = place.url.replace("http", "ws", 1) + "/v1/split"
    socket = await websockets.connect(
        url,
        subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]
        compression=None,
        additional_headers=place.headers,
        proxy=None,
    )
    try:
        yield socket
    finally:
        socket.transport.abort()


# --- Good clients, and what is left


def _http(place: Place) -> httpx.AsyncClient:
    return httpx.AsyncClient(headers=place.headers, trust_env=False, timeout=60)


async def ask_http(place: Place) -> str:
    """The text of a good request."""
    body = {"model": place.model, "prompt": "Once upon", "max_tokens": 8, "temperature": 0}
    async with _http(place) as http:
        answer = await http.post(f"{place.url}/v1/completions", json=body)
    return str(answer.raise_for_status().json()["choices"][0]["text"])


async def ask_socket(place: Place) -> int:
    """The token that follows three good packets."""
    async with _dial(place) as socket:
        await socket.send(encode(hello(place)))
        opening = Open(request_id=7, num_prompt=3, sampling=SamplingParams(max_tokens=1))
        await socket.send(encode(opening))
        while True:
            match message := decode(await asyncio.wait_for(socket.recv(), 60)):
                case Opened():
                    await socket.send(encode(DataFrame(7, 0, [place.packet] * 3)))
                case Token():
                    return message.token_id
                case Error():
                    raise RuntimeError(f"a good client was told {message}")
    raise RuntimeError("a good client was not answered")


async def expect_good(
    place: Place, ask: Callable[[Place], Awaitable[object]], tally: Tally, ends: asyncio.Event
) -> None:
    """A client that does nothing wrong, until ``ends``; its answer stays the same."""
    first = await ask(place)
    while not ends.is_set():
        try:
            answer = await ask(place)
            tally.num_good += 1
            if answer != first:
                tally.broken.append(f"a good client got {answer!r} instead of {first!r}")
        except Exception as error:
            tally.broken.append(f"a good client failed: {error!r}")
        await asyncio.sleep(0.2)


async def num_live(place: Place) -> float:
    """Requests that the engine has, running and waiting."""
    async with _http(place) as http:
        text = (await http.get(f"{place.url}/metrics")).raise_for_status().text
    names = ("sliceserve:num_requests_live", "sliceserve:num_requests_queued")
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name in names
    )


async def fuzz(place: Place, seed: int, num_clients: int, go_on: Callable[[], bool]) -> Tally:
    """Attack as long as ``go_on`` says, then wait until nothing is live."""
    tally, ends = Tally(), asyncio.Event()
    tokens: list[str] = []
    good = [
        asyncio.create_task(expect_good(place, ask, tally, ends)) for ask in (ask_http, ask_socket)
    ]

    async def attacker(number: int) -> None:
        rng = random.Random(f"{seed}/{number}")
        while go_on():
            if rng.random() < 0.7:
                await attack_http(place, rng, tally)
            else:
                await attack_socket(place, rng, tally, tokens)

    await asyncio.gather(*map(attacker, range(num_clients)))
    ends.set()
    await asyncio.gather(*good)
    deadline = time.monotonic() + _QUIET_TIMEOUT_S
    while await num_live(place):
        if time.monotonic() > deadline:
            tally.broken.append(f"{await num_live(place):g} requests are live afterwards")
            break
        await asyncio.sleep(0.5)
    return tally


async def place_of(url: str, api_key: str, hidden_size: int) -> Place:
    headers = {"Authorization": f"Bearer {api_key}"}
    async with httpx.AsyncClient(headers=headers, trust_env=False, timeout=60) as http:
        info = (await http.get(f"{url}/v1/split/info")).raise_for_status().json()
    packet = struct.pack(f"<{hidden_size}f", *(math.sin(i) for i in range(hidden_size)))
    return Place(url, api_key, info["model"], info, packet)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--serve", default="", help="more options of sliceserve serve")
    options = parser.parse_args()
    end_on_sigterm()
    os.environ["SLICESERVE_ENGINE__SCHEDULER__DETACHED_TIMEOUT_S"] = str(_DETACHED_S)
    size = ModelSpec.load(resolve_model(options.model)).hidden_size
    arguments = ["--model", options.model, "--profiles", "off", "--api-workers", "2"]
    with local_server([*arguments, *options.serve.split()]) as server:
        before = {process.pid for process in psutil.Process().children(recursive=True)}
        end = time.monotonic() + options.seconds

        async def run() -> Tally:
            place = await place_of(server.url, server.api_key, size)
            return await fuzz(place, options.seed, options.clients, lambda: time.monotonic() < end)

        tally = asyncio.run(run())
        after = {process.pid for process in psutil.Process().children(recursive=True)}
        if after != before:
            tally.broken.append(f"processes {before - after} ended, {after - before} were started")
    for words in tally.broken[:20]:
        print(words, file=sys.stderr)
    result = {
        "seconds": options.seconds,
        "seed": options.seed,
        "http": dict(tally.answers.most_common()),
        "socket": dict(tally.endings.most_common()),
        "good_answers": tally.num_good,
        "broken": len(tally.broken),
    }
    print(json.dumps(result))
    sys.exit(bool(tally.broken))


if __name__ == "__main__":
    main()
