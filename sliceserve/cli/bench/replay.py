"""Clients without a head: they send what a real one has sent for the same prompt.

The first run of a prompt is recorded. A replaying client opens the request with the same sampling
settings over the same protocol, sends the prompt's packets, and after each token the packet that
the recorded run sent next. Decoding is greedy, so the server must answer with the recorded tokens.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from sliceserve.cli.bench.fleet_messages import Outcome, Recording
from sliceserve.cli.bench.timeline import Timeline
from sliceserve.cli.bench.workload import OnToken, time_request
from sliceserve.client.build import dial_server, make_session
from sliceserve.client.connection import Connection
from sliceserve.client.errors import RequestFailed
from sliceserve.configs import ClientConfig, SamplingParams
from sliceserve.transport.frames import DataFrame, decode, frames_for
from sliceserve.transport.link import Link
from sliceserve.transport.messages import Credit, Error, Open, Opened, Token, Want, Welcome


class _RecordedLink:
    """A link that keeps the packets that go up it, by position. For one request at a time."""

    def __init__(self, link: Link, packets: dict[int, bytes]) -> None:
        self._link = link
        self._packets = packets

    @property
    def bytes_sent(self) -> int:
        return self._link.bytes_sent

    @property
    def bytes_received(self) -> int:
        return self._link.bytes_received

    async def send(self, data: bytes) -> None:
        message = decode(data)
        if isinstance(message, DataFrame):
            self._packets.update(enumerate(message.packets, message.first_position))
        await self._link.send(data)

    async def receive(self) -> bytes:
        return await self._link.receive()

    async def close(self, code: int = 1000, reason: str = "") -> None:
        await self._link.close(code, reason)


async def record(
    config: ClientConfig,
    cut: int,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingParams,
    on_token: OnToken = lambda: None,
) -> list[Recording]:
    """Answer prompts one by one with a real head for the layers below ``cut``.

    ``sampling`` must be greedy and ignore end tokens. Raises SplitError and GenerationError.
    """
    packets: dict[int, bytes] = {}

    async def dial() -> Link:
        return _RecordedLink(await dial_server(config), packets)

    session = make_session(replace(config, split=cut), dial)
    recordings = []
    await session.start()
    try:
        for prompt in prompts:
            packets.clear()
            timeline = Timeline(time.perf_counter())
            tokens = await time_request(session.generate(prompt, sampling), on_token, timeline)
            kept = [packets[i] for i in range(len(prompt) + len(tokens) - 1)]
            recordings.append(Recording(cut, len(prompt), kept, tokens))
    finally:
        await session.close()
    return recordings


def part(recording: Recording, num_prompt: int, num_output: int) -> Recording:
    """What would have been recorded for the first ``num_prompt`` tokens of prompt and answer.

    A token follows from those before it and the sampling settings: so whoever asks with the first
    of them is answered with the others. Raises ValueError for tokens outside the recorded answer.
    """
    skipped = num_prompt - recording.num_prompt
    if not (skipped >= 0 and 1 <= num_output <= len(recording.tokens) - skipped):
        raise ValueError(
            f"{num_prompt} + {num_output} tokens are no part of a recording of "
            f"{recording.num_prompt} + {len(recording.tokens)}"
        )
    return Recording(
        recording.cut,
        num_prompt,
        recording.packets[: num_prompt + num_output - 1],
        recording.tokens[skipped : skipped + num_output],
    )


async def replay(
    connection: Connection,
    request_id: int,
    recording: Recording,
    sampling: SamplingParams,
    outcome: Outcome,
) -> None:
    """Send a recording as request ``request_id`` of a connection that carries nothing else, and
    note in ``outcome`` what comes back. Raises RequestFailed, LinkClosed and ProtocolError."""
    sender = _Sender(recording, request_id)
    opening = Open(request_id=request_id, num_prompt=recording.num_prompt, sampling=sampling)
    outcome.bytes_up += await connection.send(opening)
    while True:
        message, _ = await connection.receive()
        match message:
            case Opened():
                sender.next_position, sender.credit = message.next_position, message.credit
            case Credit():
                sender.credit = message.credit
            case Want():
                sender.next_position = message.next_position
            case Token():
                outcome.timeline.tokens.append(time.perf_counter())
                i = message.position - recording.num_prompt
                outcome.num_mismatches += recording.tokens[i : i + 1] != [message.token_id]
                sender.num_known = message.position + 1
                if message.finish_reason is not None:
                    return
            case Error():
                raise RequestFailed(message.code, message.message, message.retry_after_s)
        for frame in sender.frames(connection.welcome):
            outcome.bytes_up += await connection.send(frame)
            outcome.num_packets += len(frame.packets)


class _Sender:
    """Which packets may go: those below the server's credit whose tokens are known."""

    def __init__(self, recording: Recording, request_id: int) -> None:
        self.next_position = 0
        self.credit = 0
        self.num_known = recording.num_prompt
        self._packets = recording.packets
        self._request_id = request_id

    def frames(self, limits: Welcome) -> Iterator[DataFrame]:
        packets = self._packets[self.next_position : min(self.credit, self.num_known)]
        start = self.next_position
        self.next_position += len(packets)
        return frames_for(
            self._request_id, start, packets, limits.max_frame_tokens, limits.max_frame_bytes
        )
