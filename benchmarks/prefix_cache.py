"""What the prefix cache saves in the second turn of a chat: uplink bytes, and time to first token.

Two split clients, each with a server process of its own: one pair keeps prefixes, the other does
not. They hold the same conversations by turns, so that a machine that slows down slows both. Ratios
are taken within a conversation, and their medians are shown; the last line is JSON. Conversations
are JSON lines with ``turns``, two messages of a user, as MT-Bench has them.

    python benchmarks/prefix_cache.py --prompts mt_bench_prompts.jsonl --num-chats 20
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from sliceserve.cli import options
from sliceserve.cli.bench.backends import own_server
from sliceserve.cli.bench.report import finish, make_table
from sliceserve.cli.console import Working, progress
from sliceserve.cli.local_server import LocalServer
from sliceserve.cli.signals import end_on_sigterm
from sliceserve.client import AsyncSplitLLM, RequestStats
from sliceserve.configs import ClientConfig, SamplingParams
from sliceserve.transport.proxy import ShapingProxy
from sliceserve.transport.shaping import LinkShape

_SERVER_OPTIONS = ("--kv-cache-tokens", "16384")


class Chat(msgspec.Struct):
    turns: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Turn:
    """One request. ``prompt_bytes`` went up before the first token came, which took ``ttft_s``."""

    tokens: tuple[int, ...]
    num_prompt: int
    prompt_bytes: int
    ttft_s: float
    stats: RequestStats


# The second turns of one conversation, with the cache and without.
Pair = tuple[Turn, Turn]


async def take_turn(
    llm: AsyncSplitLLM, messages: Sequence[dict[str, str]], output_len: int
) -> Turn:
    prompt = llm.tokenizer.chat_prompt(list(messages))
    stats = RequestStats()
    tokens: list[int] = []
    prompt_bytes, ttft_s = 0, 0.0
    start = time.perf_counter()
    sampling = SamplingParams(max_tokens=output_len)
    async for step in llm.generator.generate(prompt, sampling, stats=stats):
        if not tokens:
            prompt_bytes, ttft_s = stats.bytes_up, time.perf_counter() - start
        tokens.append(step.token.token_id)
    return Turn(tuple(tokens), len(prompt), prompt_bytes, ttft_s, stats)


async def second_turn(llm: AsyncSplitLLM, chat: Chat, output_len: int) -> Turn:
    """Both turns of ``chat``; what the second one cost."""
    messages = [{"role": "user", "content": chat.turns[0]}]
    first = await take_turn(llm, messages, output_len)
    answer = llm.tokenizer.decode(first.tokens)
    messages += [
        {"role": "assistant", "content": answer},
        {"role": "user", "content": chat.turns[1]},
    ]
    return await take_turn(llm, messages, output_len)


def start_server(config: ClientConfig) -> AbstractContextManager[LocalServer]:
    switch = "--prefix-cache" if config.prefix_cache else "--no-prefix-cache"
    cuts = () if config.split is None else (config.split,)
    return own_server(config, cuts, (*_SERVER_OPTIONS, switch))


@asynccontextmanager
async def open_client(
    config: ClientConfig, server: LocalServer, shape: LinkShape
) -> AsyncIterator[AsyncSplitLLM]:
    """A client of ``server``, with a line of ``shape`` between them."""
    port = int(server.url.rsplit(":", 1)[1])
    async with ShapingProxy("127.0.0.1", port, shape) as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        async with AsyncSplitLLM(url, api_key=server.api_key, config=config) as llm:
            yield llm


async def measure(
    config: ClientConfig, shape: LinkShape, chats: Sequence[Chat], output_len: int
) -> dict[str, Any]:
    configs = [replace(config, prefix_cache=prefix_cache) for prefix_cache in (True, False)]
    async with AsyncExitStack() as stack:
        with Working(f"Loading {config.model.model} for two clients and two servers …"):
            servers = [stack.enter_context(start_server(one)) for one in configs]
            llms = [
                await stack.enter_async_context(open_client(one, server, shape))
                for one, server in zip(configs, servers, strict=True)
            ]
            for llm in llms:
                await second_turn(llm, Chat(("Good morning!", "And good night!")), 4)
        pairs = []
        with progress("conversations", len(chats)) as advance:
            for chat in chats:
                cached = await second_turn(llms[0], chat, output_len)
                pairs.append((cached, await second_turn(llms[1], chat, output_len)))
                advance()
        return {
            "model": config.model.model,
            "split": llms[0].split,
            "codec": llms[0].codec,
            "up_mbps": shape.up_mbps,
            "delay_ms": shape.delay_ms,
            **summarize(pairs),
        }


def summarize(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Medians over the conversations. A ratio is what is paid without the cache over what is paid
    with it."""

    def median(figure: Callable[[Turn], float], index: int) -> float:
        return statistics.median(figure(pair[index]) for pair in pairs)

    figures: dict[str, Callable[[Turn], float]] = {
        "prompt_uplink_bytes": lambda turn: turn.prompt_bytes,
        "uplink_bytes": lambda turn: turn.stats.bytes_up,
        "ttft_ms": lambda turn: 1e3 * turn.ttft_s,
    }
    result: dict[str, Any] = {
        "num_chats": len(pairs),
        "num_same_answers": sum(cached.tokens == plain.tokens for cached, plain in pairs),
        "prompt_tokens": median(lambda turn: turn.num_prompt, 0),
        "num_cached_head": median(lambda turn: turn.stats.num_cached_head, 0),
        "num_cached_server": median(lambda turn: turn.stats.num_cached_server, 0),
    }
    for name, figure in figures.items():
        result[f"{name}_with"] = median(figure, 0)
        result[f"{name}_without"] = median(figure, 1)
        result[f"{name}_ratio"] = statistics.median(
            figure(plain) / figure(cached) for cached, plain in pairs
        )
    return result


def read_chats(path: Path, num_chats: int) -> list[Chat]:
    with path.open("rb") as lines:
        return [msgspec.json.decode(line, type=Chat) for line in islice(lines, num_chats)]


def main() -> None:
    end_on_sigterm()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=Path, required=True, help="JSON lines with two turns")
    parser.add_argument("--num-chats", type=int, default=20, help="the first so many of them")
    parser.add_argument("--output-len", type=int, default=64, help="most tokens of an answer")
    parser.add_argument("--model", help="as for the commands (default: the default model)")
    parser.add_argument("--dtype", default="float32", help="float32, float16 or bfloat16")
    parser.add_argument("--split", type=int, default=15, help="the cut")
    parser.add_argument("--codec", help="as for the commands")
    parser.add_argument("--up-mbps", type=float, help="rate of the uplink (default: no limit)")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="of the line, each way")
    given = parser.parse_args()
    if not given.prompts.is_file():
        sys.exit(f"skipped: there is no file {given.prompts}; --prompts names one of conversations")
    config = options.client_config(
        None, model=given.model, dtype=given.dtype, split=given.split, codec=given.codec
    )
    shape = LinkShape(up_mbps=given.up_mbps, delay_ms=given.delay_ms)
    chats = read_chats(given.prompts, given.num_chats)
    result = asyncio.run(measure(config, shape, chats, given.output_len))
    rows = list(result.items())
    finish([result], True, make_table("second turns, medians", ["", ""], rows))


if __name__ == "__main__":
    main()
