"""How the engine compares with transformers on this machine, and what a cut adds to a token.

All contenders stay loaded and take turns, A B C A B C, so that a machine that slows down slows all
of them. A ratio is taken within a turn, and its median over the turns is shown. The last line is
JSON.

    python benchmarks/engine_vs_transformers.py --dtype bfloat16
"""

import argparse
import asyncio
import statistics
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

from sliceserve.cli import options
from sliceserve.cli.bench.backends import open_backend
from sliceserve.cli.bench.latency import measure_stream
from sliceserve.cli.bench.measure import measure_work, warm_up
from sliceserve.cli.bench.options import BackendName
from sliceserve.cli.bench.report import finish, make_table
from sliceserve.cli.bench.workload import Workload
from sliceserve.cli.console import Working, progress
from sliceserve.cli.signals import end_on_sigterm
from sliceserve.configs import ClientConfig

# The results of one turn, by backend and number of streams.
Turn = dict[tuple[str, int], dict[str, Any]]

_WHOLE, _SPLIT, _TRANSFORMERS = (name.value for name in BackendName)
_NUM_STREAMS = 8
_PARTS = ("head_layers_ms", "encode_ms", "server_ms", "link_ms", "client_ms")


async def take_turns(
    config: ClientConfig, input_len: int, output_len: int, num_turns: int
) -> list[Turn]:
    """In a turn each backend answers one prompt, and then each ``_NUM_STREAMS`` at once."""
    stream = Workload(num_prompts=1, input_len=input_len, output_len=output_len)
    streams = Workload(num_prompts=_NUM_STREAMS, input_len=input_len, output_len=output_len)
    turns: list[Turn] = []
    async with AsyncExitStack() as stack:
        with Working(f"Loading {config.model.model} for each backend …"):
            backends = [
                await stack.enter_async_context(open_backend(name, config)) for name in BackendName
            ]
            for backend in backends:
                await warm_up(backend, config, streams, _NUM_STREAMS)
                await warm_up(backend, config, stream, 1)
        with progress("turns", 2 * num_turns * len(backends)) as advance:
            for _ in range(num_turns):
                turn: Turn = {}
                for backend in backends:
                    turn[backend.name, 1] = await measure_stream(backend, config, stream)
                    advance()
                for backend in backends:
                    result = await measure_work(backend, config, streams, _NUM_STREAMS)
                    turn[backend.name, _NUM_STREAMS] = result
                    advance()
                turns.append(turn)
    return turns


def summarize(turns: Sequence[Turn]) -> dict[str, Any]:
    """Medians over the turns. Speeds are output tokens per second, prompts included in the time."""

    def median(figure: Callable[[Turn], float]) -> float:
        return statistics.median(map(figure, turns))

    def speed(backend: str, num_streams: int) -> Callable[[Turn], float]:
        return lambda turn: turn[backend, num_streams]["tokens_per_s"]

    def ratio(one: Callable[[Turn], float], other: Callable[[Turn], float]) -> float:
        return median(lambda turn: one(turn) / other(turn))

    def itl_ms(turn: Turn, backend: str) -> float:
        # The median gap: stalls of a busy machine leave it alone.
        return float(turn[backend, 1]["itl_ms"]["p50"])

    whole, batched = speed(_WHOLE, 1), speed(_WHOLE, _NUM_STREAMS)
    transformers, transformers_batched = speed(_TRANSFORMERS, 1), speed(_TRANSFORMERS, _NUM_STREAMS)
    first = turns[0]
    return {
        **{name: first[_WHOLE, 1][name] for name in ("model", "dtype", "input_len", "output_len")},
        **{name: first[_SPLIT, 1][name] for name in ("split", "codec", "uplink_bytes_per_token")},
        "num_turns": len(turns),
        "num_streams": _NUM_STREAMS,
        "whole_tokens_per_s": median(whole),
        "whole_vs_transformers": ratio(whole, transformers),
        "whole_itl_vs_transformers": median(
            lambda turn: itl_ms(turn, _TRANSFORMERS) / itl_ms(turn, _WHOLE)
        ),
        "streams_vs_transformers": ratio(batched, transformers_batched),
        "streams_vs_one": ratio(batched, whole),
        "split_vs_whole": ratio(speed(_SPLIT, 1), whole),
        "split_extra_ms_per_token": median(
            lambda turn: itl_ms(turn, _SPLIT) - itl_ms(turn, _WHOLE)
        ),
        "split_token": {
            part: statistics.median(turn[_SPLIT, 1]["decode"][part] for turn in turns)
            for part in _PARTS
        },
    }


def main() -> None:
    end_on_sigterm()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="as for the commands (default: the default model)")
    parser.add_argument("--dtype", default="float32", help="float32, float16 or bfloat16")
    parser.add_argument("--split", type=int, help="the cut (default: the middle one)")
    parser.add_argument("--codec", help="as for the commands (default: slicer)")
    parser.add_argument("--input-len", type=int, default=32, help="tokens of each prompt")
    parser.add_argument("--output-len", type=int, default=32, help="tokens of each answer, from 2")
    parser.add_argument("--turns", type=int, default=5, help="how often each backend has its turn")
    given = parser.parse_args()
    config = options.client_config(
        None, model=given.model, dtype=given.dtype, split=given.split, codec=given.codec
    )
    turns = asyncio.run(take_turns(config, given.input_len, given.output_len, given.turns))
    result = summarize(turns)
    title = f"{result['model']} in {result['dtype']}, medians over {given.turns} turns"
    named = {f"split token: {part}": value for part, value in result["split_token"].items()}
    rows = [(name, value) for name, value in (result | named).items() if isinstance(value, float)]
    finish([result], True, make_table(title, ["", ""], rows))


if __name__ == "__main__":
    main()
