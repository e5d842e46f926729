"""The two peers of a session, without a model: a head whose packets name position and token, and a
server whose tokens hash every packet it was given, so that no lost or changed byte goes unseen."""

import asyncio
import itertools
import zlib
from dataclasses import dataclass, field
from typing import Any

import msgspec

from sliceserve.client.profiles import FetchProfile
from sliceserve.client.session import SplitSession
from sliceserve.configs import Patience, SamplingParams
from sliceserve.engine.messages import (
    AppendTokens,
    Cancel,
    Command,
    EngineInfo,
    EngineStats,
    GetStats,
    Open,
    RequestOutput,
)
from sliceserve.engine.streams import EngineStreams
from sliceserve.scheduler.prefix import block_digests
from sliceserve.transport import messages as wire
from sliceserve.transport.frames import DataFrame, decode, encode
from sliceserve.transport.link import CloseCode, Link, LinkClosed, LinkRefused
from sliceserve.transport.loopback import loopback_pair

VOCAB = 1000
CUT = 3
CODEC = "scripted/1"


def packet(position: int, token_id: int) -> bytes:
    return b"%d:%d;" % (position, token_id)


def next_token(packets: list[bytes], seed: int | None) -> int:
    return zlib.crc32(b"".join(packets), seed or 0) % VOCAB


def answer(prompt: list[int], sampling: SamplingParams) -> list[int]:
    """What any sequence of links and servers must give."""
    packets = [packet(i, t) for i, t in enumerate(prompt)]
    outputs = []
    while len(outputs) < sampling.max_tokens:
        outputs.append(next_token(packets, sampling.seed))
        packets.append(packet(len(packets), outputs[-1]))
    return outputs


def welcome(**changes: Any) -> wire.Welcome:
    """What a server that has the scripted model says first."""
    limits = wire.Welcome(
        protocol=wire.PROTOCOL_VERSION,
        cut=CUT,
        codec=CODEC,
        model="scripted",
        num_layers=10,
        max_model_len=100,
        max_requests=8,
        max_frame_tokens=8,
        max_frame_bytes=1 << 16,
        resume_token="secret",
        resume_timeout_s=60.0,
    )
    return msgspec.structs.replace(limits, **changes)


class ScriptedHead(EngineStreams):
    """Gives the prompt's packets ``chunk`` at a time; ``encoded`` lists every (id, position).

    Whole blocks of what it has encoded are ``kept`` (the tenant, and the token ids up to their
    ends), and given at opening. While ``slow`` is set it does not answer.
    """

    block_size = 4

    def __init__(self, cut: int, model_path: str = "", chunk: int = 4) -> None:
        super().__init__()
        self.cut = cut
        self.chunk = chunk
        self.model_path = model_path
        self.encoded: list[tuple[str, int]] = []
        self.live: set[str] = set()
        self.known: dict[str, list[int]] = {}
        self.tenants: dict[str, str] = {}
        self.kept: set[tuple[str, tuple[int, ...]]] = set()
        self.slow = False
        self.num_starts = 0

    async def start(self) -> EngineInfo:
        self.num_starts += 1
        self._info = EngineInfo(
            model="scripted",
            model_path=self.model_path,
            fingerprint="abc",
            dtype="float32",
            device="cpu",
            num_layers=10,
            hidden_size=16,
            vocab_size=VOCAB,
            max_model_len=120,
            first_layer=0,
            stop_layer=self.cut,
            cuts=[],
            thin=False,
            codecs=[CODEC],
            eos_token_ids=[],
        )
        return self._info

    async def stop(self) -> None:
        self._die("stopped")

    def die(self) -> None:
        self._die("out of memory")

    def _post(self, command: Command) -> None:
        if isinstance(command, Open):
            self.live.add(command.request_id)
            if not self.slow:
                self._begin(command)
        elif isinstance(command, AppendTokens):
            self._emit(command.request_id, command.start, command.tokens)
        elif isinstance(command, Cancel):
            self.live.discard(command.request_id)
        elif isinstance(command, GetStats):
            asyncio.get_running_loop().call_soon(self._dispatch, [self._stats()])

    def _begin(self, command: Open) -> None:
        ends = range(self.block_size, command.num_prompt + 1, self.block_size)
        names = [(command.tenant, tuple(command.prompt[:end])) for end in ends]
        hits = itertools.takewhile(self.kept.__contains__, names)
        num_kept = self.block_size * len(list(hits))
        self.tenants[command.request_id] = command.tenant
        known = self.known[command.request_id] = command.prompt[:num_kept]
        packets = [packet(i, token) for i, token in enumerate(known)]
        opened = RequestOutput(request_id=command.request_id, opened=True, packets=packets)
        asyncio.get_running_loop().call_soon(self._dispatch, [opened])
        for start in range(num_kept, command.num_prompt, self.chunk):
            tokens = command.prompt[start : start + self.chunk]
            self._emit(command.request_id, start, tokens)

    def _stats(self) -> EngineStats:
        return EngineStats(
            num_live=len(self.live),
            num_running=0,
            num_waiting=0,
            num_detached=0,
            num_steps_total=0,
            num_tokens_total=len(self.encoded),
            num_sampled_total=0,
            num_preempted_total=0,
            busy_seconds=0.0,
            held_packet_bytes=0,
            segments=[],
        )

    def _emit(self, request_id: str, start: int, tokens: list[int]) -> None:
        packets = [packet(start + i, token) for i, token in enumerate(tokens)]
        known, tenant = self.known[request_id], self.tenants[request_id]
        known += tokens
        ends = range(self.block_size, len(known) + 1, self.block_size)
        self.kept.update((tenant, tuple(known[:end])) for end in ends)
        self.encoded += [(request_id, start + i) for i in range(len(tokens))]
        output = RequestOutput(
            request_id=request_id, start=start, packets=packets, seconds=0.001 * len(tokens)
        )
        asyncio.get_running_loop().call_soon(self._dispatch, [output])


@dataclass
class Held:
    """A request on the server."""

    open: wire.Open
    packets: list[bytes] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    granted: int = 0

    @property
    def num_known(self) -> int:
        return self.open.num_prompt + len(self.outputs)


class ScriptedServer:
    """Serves over loopback links, and cuts them as told.

    ``cut_before`` and ``cut_after``: numbers of tokens (counted from 1 over all requests) around
    whose sending the link is cut; before: the token is lost. ``forgetful``: no session outlives
    its link. ``gap_at``: at this position, once, what came is lost. With ``block_size`` above 0,
    blocks of packets are ``kept`` by digest, whatever becomes of their requests. Packets of the
    first ``early_tokens`` positions may come before Opened. ``received`` lists all messages,
    ``violations`` what a client must never do.
    """

    def __init__(self, window: int = 6, max_frame_tokens: int = 4) -> None:
        self.window = window
        self.max_frame_tokens = max_frame_tokens
        self.block_size = 0
        self.early_tokens = 0
        self.kept: dict[bytes, list[bytes]] = {}
        self.cut_before: set[int] = set()
        self.cut_after: set[int] = set()
        self.forgetful = False
        self.silent = False
        self.gap_at: int | None = None
        self.repeat_tokens = False
        self.profile: str | None = None
        self.refuse: wire.Error | LinkRefused | None = None
        self.refuse_open: wire.Error | None = None
        self.received: list[wire.Control | DataFrame] = []
        self.violations: list[str] = []
        self.num_tokens = 0
        self.num_dials = 0
        self.num_sessions = 0
        self.sessions: dict[str, dict[int, Held]] = {}
        self.links: list[Link] = []
        self.tasks: list[asyncio.Task[None]] = []

    @property
    def live(self) -> list[int]:
        return [request_id for held in self.sessions.values() for request_id in held]

    def sent(self, kind: type) -> list:
        return [message for message in self.received if isinstance(message, kind)]

    async def dial(self) -> Link:
        self.num_dials += 1
        if isinstance(self.refuse, LinkRefused):
            raise self.refuse
        ours, theirs = loopback_pair()
        self.links.append(theirs)
        self.tasks.append(asyncio.create_task(self._serve(theirs)))
        return ours

    async def drop_link(self) -> None:
        await self.links[-1].close(CloseCode.ABNORMAL)

    async def say(self, message: wire.Control) -> None:
        await self.links[-1].send(encode(message))

    async def _serve(self, link: Link) -> None:
        token = ""
        try:
            hello = decode(await link.receive())
            self.received.append(hello)
            if self.refuse is not None:
                await link.send(encode(self.refuse))
                await link.close()
                return
            token = hello.resume_token or ""
            if token not in self.sessions:
                self.num_sessions += 1
                token = f"secret-{self.num_sessions}"
                self.sessions[token] = {}
            await link.send(encode(self._welcome(hello, token)))
            while True:
                message = decode(await link.receive())
                self.received.append(message)
                await self._handle(link, token, message)
        except LinkClosed:
            if self.forgetful:
                self.sessions.pop(token, None)

    def _welcome(self, hello: wire.Hello, token: str) -> wire.Welcome:
        return welcome(
            protocol=hello.protocol,
            cut=CUT if hello.cut is None else hello.cut,
            codec=hello.codec,
            profile=self.profile,
            max_frame_tokens=self.max_frame_tokens,
            resume_token=token,
            block_size=self.block_size,
            early_tokens=self.early_tokens,
        )

    async def _handle(self, link: Link, token: str, message: wire.Control | DataFrame) -> None:
        requests = self.sessions.setdefault(token, {})
        if isinstance(message, wire.Open) and not self.silent:
            await self._open(link, requests, message)
        elif isinstance(message, DataFrame) and message.request_id in requests:
            await self._take(link, requests, message)
        elif isinstance(message, wire.Cancel):
            requests.pop(message.request_id, None)
        elif isinstance(message, wire.Bye):
            self.sessions.pop(token)

    async def _open(self, link: Link, requests: dict[int, Held], message: wire.Open) -> None:
        if self.refuse_open is not None:
            refusal = wire.Error(
                code=self.refuse_open.code,
                message=self.refuse_open.message,
                request_id=message.request_id,
                retry_after_s=self.refuse_open.retry_after_s,
            )
            await link.send(encode(refusal))
            return
        held = requests.get(message.request_id)
        if held is None:
            held = requests[message.request_id] = Held(message, outputs=list(message.outputs))
            for digest in itertools.takewhile(self.kept.__contains__, message.prefix):
                held.packets += self.kept[digest]
        held.granted = len(held.packets) + self.window
        opened = wire.Opened(
            request_id=message.request_id,
            next_position=len(held.packets),
            credit=held.granted,
        )
        await link.send(encode(opened))
        if len(held.outputs) == len(message.outputs) + 1:
            await self._send_token(link, requests, held)
        elif len(held.packets) == held.num_known:
            await self._sample(link, requests, held)

    async def _take(self, link: Link, requests: dict[int, Held], frame: DataFrame) -> None:
        held = requests[frame.request_id]
        end = frame.first_position + len(frame.packets)
        is_early = held.granted < end <= self.early_tokens
        if end > held.granted and not is_early:
            self.violations.append(f"{end} beyond credit {held.granted}")
        if end > held.num_known:
            self.violations.append(f"{end} beyond the {held.num_known} known")
        if len(frame.packets) > self.max_frame_tokens:
            self.violations.append(f"{len(frame.packets)} tokens in a frame")
        lost = self.gap_at is not None and frame.first_position <= self.gap_at < end
        if lost or is_early or frame.first_position > len(held.packets):
            self.gap_at = None
            want = wire.Want(request_id=frame.request_id, next_position=len(held.packets))
            await link.send(encode(want))
            return
        held.packets += frame.packets[len(held.packets) - frame.first_position :]
        self._keep(held.packets)
        if len(held.packets) < held.num_known:
            await self._grant(link, held)
            return
        await self._sample(link, requests, held)

    def _keep(self, packets: list[bytes]) -> None:
        size = self.block_size
        for i, digest in enumerate(block_digests(packets, size) if size else []):
            self.kept[digest] = packets[i * size : (i + 1) * size]

    async def _sample(self, link: Link, requests: dict[int, Held], held: Held) -> None:
        sampling = held.open.sampling
        held.outputs.append(next_token(held.packets, sampling.seed))
        self.num_tokens += 1
        if self.num_tokens in self.cut_before:
            await link.close(CloseCode.ABNORMAL)
            return
        await self._send_token(link, requests, held)
        if self.num_tokens in self.cut_after:
            await asyncio.sleep(0)
            await link.close(CloseCode.ABNORMAL)

    async def _send_token(self, link: Link, requests: dict[int, Held], held: Held) -> None:
        request_id = held.open.request_id
        is_last = len(held.outputs) == held.open.sampling.max_tokens
        message = wire.Token(
            request_id=request_id,
            position=held.num_known - 1,
            token_id=held.outputs[-1],
            finish_reason="length" if is_last else None,
            server_us=500,
        )
        if is_last:
            del requests[request_id]
        await link.send(encode(message))
        if not is_last:
            await self._grant(link, held)
        if self.repeat_tokens:
            await link.send(encode(message))

    async def _grant(self, link: Link, held: Held) -> None:
        held.granted = len(held.packets) + self.window
        credit = wire.Credit(request_id=held.open.request_id, credit=held.granted)
        await link.send(encode(credit))

    async def grant_all(self) -> None:
        """Tell every live request the credit of the present window."""
        for requests in self.sessions.values():
            for held in requests.values():
                await self._grant(self.links[-1], held)


class Pair:
    """A session between a scripted head and a scripted server."""

    def __init__(
        self,
        server: ScriptedServer,
        model_path: str = "",
        protocol: int = 1,
        fetch_profile: FetchProfile | None = None,
        **patience: Any,
    ) -> None:
        self.server = server
        self.model_path = model_path
        self.head: ScriptedHead | None = None
        hello = wire.Hello(protocol=protocol, fingerprint="abc", codec=CODEC)
        self.session = SplitSession(
            server.dial, self._make_head, hello, Patience(**patience), fetch_profile
        )

    def _make_head(self, welcome: wire.Welcome) -> ScriptedHead:
        self.head = ScriptedHead(welcome.cut, self.model_path)
        return self.head

    async def generate(self, prompt: list[int], sampling: SamplingParams) -> list[int]:
        return [step.token.token_id async for step in self.session.generate(prompt, sampling)]

    async def settled(self) -> None:
        """Let messages arrive and be answered."""
        for _ in range(50):
            await asyncio.sleep(0)
