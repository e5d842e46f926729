"""What the tests of correctness share: right tokens, heads for many clients, and a server's books.

Nothing here imports torch before sliceserve has set how its threads wait.
"""

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgspec
import pytest
import pytest_asyncio
from msgspec.structs import replace
from passages import CHATS, TEXTS

from sliceserve.cli.local_server import LocalServer, local_server
from sliceserve.client import SplitSession
from sliceserve.configs import (
    DEFAULT_MODEL,
    CacheConfig,
    CodecConfig,
    EngineConfig,
    LayerConfig,
    ModelConfig,
    Patience,
    SamplingParams,
    SchedulerConfig,
)
from sliceserve.engine.build import build_engine
from sliceserve.engine.engine import Engine
from sliceserve.engine.in_process import InProcessEngine
from sliceserve.engine.messages import EngineInfo
from sliceserve.models.files import read_json
from sliceserve.models.resolve import resolve_model
from sliceserve.models.tokenizer import Tokenizer
from sliceserve.transport import messages as wire
from sliceserve.transport.frames import DataFrame, decode, encode
from sliceserve.transport.link import Link, LinkClosed
from sliceserve.transport.websocket import connect

CODEC = "float32/1"
PACKET_BYTES = 4 * 576
NUM_TOKENS = 64
GREEDY = SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True)
# What a server must be started with to compute as the reference does.
EXACT = ["--dtype", "float32", "--device", "cpu", "--kv-cache-tokens", "8192", "--profiles", "off"]
# Between the two likeliest logits; float32 rounds them by less than a tenth of it.
_LEAST_LEAD = 1e-3
_SETTLE_TIMEOUT_S = 60.0
_FLOAT32 = CodecConfig(name="float32")


@dataclass(frozen=True)
class Case:
    """A prompt, and the tokens that transformers chooses after it in float32."""

    prompt: list[int]
    tokens: list[int]


def _engine_config(first=0, stop=None, cuts=None, **scheduler) -> EngineConfig:
    return EngineConfig(
        model=ModelConfig(model=DEFAULT_MODEL, dtype="float32", device="cpu"),
        layers=LayerConfig(first=first, stop=stop, cuts=cuts),
        cache=CacheConfig(num_tokens=16384),
        scheduler=SchedulerConfig(**scheduler),
        profiles="off",
    )


def load_engine(**layers) -> Engine:
    """Layers of the default model in float32, to be driven by hand."""
    return build_engine(_engine_config(**layers), _FLOAT32)


def altered_model(folder: Path, files=(), config=()) -> Path:
    """A new folder with the default model's files: with other ``files``, which map names to
    content, and other values in config.json."""
    original = resolve_model(DEFAULT_MODEL)
    changed = {"config.json": json.dumps(read_json(original / "config.json") | dict(config))}
    changed |= dict(files)
    folder.mkdir()
    for file in original.iterdir():
        if file.name not in changed:
            (folder / file.name).symlink_to(file)
    for name, content in changed.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


class BorrowedHead:
    """One client's view of a head that many share, so that its layers are loaded once."""

    _names = itertools.count()

    def __init__(self, engine: InProcessEngine) -> None:
        self._engine = engine
        self._name = next(self._names)

    @property
    def info(self):
        return self._engine.info

    async def start(self):
        return self._engine.info

    def open(self, request):
        return self._engine.open(self._mine(request))

    def send(self, command):
        self._engine.send(self._mine(command))

    async def stats(self):
        return await self._engine.stats()

    async def stop(self):
        pass

    def _mine(self, command):
        return msgspec.structs.replace(command, request_id=f"{self._name}:{command.request_id}")


@contextlib.asynccontextmanager
async def split_client(
    head: InProcessEngine, dial: Callable[[], Awaitable[Link]]
) -> AsyncIterator[SplitSession]:
    """A client of its own, with a connection of its own, at the cut above ``head``."""
    hello = hello_of(head.info)
    patience = Patience(connect_timeout_s=120.0, timeout_s=120.0, resume_timeout_s=120.0)
    session = SplitSession(dial, lambda _: BorrowedHead(head), hello, patience)
    await session.start()
    try:
        yield session
    finally:
        await session.close()


def dialer(server: LocalServer, port: int | None = None) -> Callable[[], Awaitable[Link]]:
    """Links to ``server``, through a proxy on ``port`` if there is one."""
    url = server.url if port is None else f"http://127.0.0.1:{port}"
    return lambda: connect(url, server.api_key, 120.0)


def hello_of(info: EngineInfo) -> wire.Hello:
    """What a client says whose head is described by ``info``."""
    return wire.Hello(fingerprint=info.fingerprint, cut=info.stop_layer, codec=CODEC)


class RawLine:
    """The protocol by hand: messages or any bytes out, messages in."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def send(self, message: wire.Control | DataFrame | bytes) -> None:
        await self._link.send(message if isinstance(message, bytes) else encode(message))

    async def receive(self, kind):
        """The next message, which must be of ``kind``; Credit may come at any time."""
        while isinstance(message := decode(await self._link.receive()), wire.Credit):
            pass
        assert isinstance(message, kind), message
        return message

    async def closed(self) -> int:
        """The code with which the server closes."""
        with pytest.raises(LinkClosed) as closed:
            while True:
                await self._link.receive()
        return closed.value.code

    async def aclose(self) -> None:
        await self._link.close()


@contextlib.asynccontextmanager
async def raw_line(server: LocalServer, hello: wire.Hello) -> AsyncIterator[RawLine]:
    """A line that has been welcomed; it ends with Bye."""
    async with contextlib.aclosing(RawLine(await dialer(server)())) as line:
        await line.send(hello)
        await line.receive(wire.Welcome)
        yield line
        with contextlib.suppress(LinkClosed):
            await line.send(wire.Bye())


async def tokens_of(session: SplitSession, prompt, sampling) -> list[int]:
    return [step.token.token_id async for step in session.generate(prompt, sampling)]


def api(server: LocalServer) -> httpx.AsyncClient:
    """The HTTP side of ``server``."""
    headers = {"Authorization": f"Bearer {server.api_key}"}
    return httpx.AsyncClient(base_url=server.url, headers=headers, timeout=120.0, trust_env=False)


async def metrics(server: LocalServer) -> dict[str, float]:
    """Samples of /metrics by name and labels."""
    async with api(server) as http:
        lines = (await http.get("/metrics")).raise_for_status().text.splitlines()
    samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name.removeprefix("sliceserve:"): float(value) for name, _, value in samples}


async def num_sessions(server: LocalServer) -> float:
    """Split connections that are open, whatever their cuts."""
    now = await metrics(server)
    return sum(value for name, value in now.items() if name.startswith("split_sessions{"))


async def expect_nothing_left(server: LocalServer) -> None:
    """All requests of the server end by themselves, and give back what they held."""
    left: dict[str, float] = {"not asked": 1.0}
    for _ in range(int(_SETTLE_TIMEOUT_S / 0.1)):
        now = await metrics(server)
        left = {name: value for name, value in now.items() if _is_held(name) and value}
        # A busy engine's part is left out.
        if not left and "num_requests_live" in now:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"the server still holds {left}")


def _is_held(name: str) -> bool:
    return name.startswith(("num_requests_", "held_packet_bytes", "kv_cache_usage_perc"))


@contextlib.asynccontextmanager
async def undisturbed(server: LocalServer, head: InProcessEngine, case: Case):
    """While this is open, a good client generates over and over, and must get the right tokens;
    afterwards the server must hold nothing."""
    sampling = replace(GREEDY, max_tokens=16)
    done = False

    async def work() -> None:
        async with split_client(head, dialer(server)) as session:
            while not done:
                assert await tokens_of(session, case.prompt, sampling) == case.tokens[:16]
            assert session.stats.num_reconnects == 0

    working = asyncio.create_task(work())
    try:
        yield
    finally:
        done = True
        await working
    await expect_nothing_left(server)


@pytest.fixture(scope="session")
def cases() -> list[Case]:
    """The passages, chats in the model's template, and what transformers makes of them."""
    import torch
    from transformers import AutoModelForCausalLM

    path = resolve_model(DEFAULT_MODEL)
    tokenizer = Tokenizer.load(path)
    chats = [tokenizer.chat_prompt([{"role": "user", "content": text}]) for text in CHATS]
    prompts = chats + [tokenizer.encode(text) for text in TEXTS]
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    width = max(map(len, prompts))
    padding = [[0] * (width - len(prompt)) for prompt in prompts]
    with torch.inference_mode():
        out = model.generate(
            torch.tensor([pad + prompt for pad, prompt in zip(padding, prompts, strict=True)]),
            attention_mask=torch.tensor(
                [pad + [1] * len(prompt) for pad, prompt in zip(padding, prompts, strict=True)]
            ),
            max_new_tokens=NUM_TOKENS,
            min_new_tokens=NUM_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
    best = torch.stack(out.logits).topk(2, dim=-1).values  # (NUM_TOKENS, num_prompts, 2)
    lead = (best[..., 0] - best[..., 1]).amin(0)
    assert lead.min() > _LEAST_LEAD, f"rounding may decide after prompt {int(lead.argmin())}"
    tokens = out.sequences[:, width:].tolist()
    return [Case(*case) for case in zip(prompts, tokens, strict=True)]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def heads():
    """``await heads(cut)``: an engine for the layers below, loaded once."""
    made: dict[int, InProcessEngine] = {}

    async def head(cut: int) -> InProcessEngine:
        if cut not in made:
            made[cut] = InProcessEngine(_engine_config(stop=cut), _FLOAT32)
            await made[cut].start()
        return made[cut]

    yield head
    for engine in made.values():
        stats = await engine.stats()
        assert stats.num_live == 0
        assert all(segment.num_free == segment.num_blocks for segment in stats.segments)
        await engine.stop()


@pytest.fixture(scope="session")
def server() -> Iterator[LocalServer]:
    """`sliceserve serve` with every layer, for all modules: each must leave it empty."""
    with pytest.MonkeyPatch.context() as patch:
        # Long enough to come back, and short enough to wait for the end of what nobody wants.
        patch.setenv("SLICESERVE_ENGINE__SCHEDULER__DETACHED_TIMEOUT_S", "10")
        with local_server([*EXACT, "--cuts", "8,15,22"]) as running:
            yield running
