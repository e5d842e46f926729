"""`sliceserve demo`: a server and a split client on this machine, one answer, and what it cost."""

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sliceserve.cli import options
from sliceserve.cli.console import Working, stdout
from sliceserve.cli.cost import cost_table, server_share
from sliceserve.cli.local_server import local_server
from sliceserve.configs import ClientConfig

if TYPE_CHECKING:
    from sliceserve.client.stats import SessionStats
    from sliceserve.client.sync import SplitLLM


@options.takes(ClientConfig, without=("server", "api_key"))
def demo(
    settings: ClientConfig,
    prompt: Annotated[
        str, typer.Option(help="What to ask the model.")
    ] = "Explain how a rainbow forms.",
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of the answer.")] = 64,
    json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON line at the end; the answer goes to stderr."),
    ] = False,
) -> None:
    """Answer a prompt with the model cut in two, between two processes on this machine."""
    name = settings.model.model
    with ExitStack() as stack:
        with Working(f"Starting a server for {name}; the first time takes some minutes …"):
            cut = _half(name) if settings.split is None else settings.split
            server = stack.enter_context(local_server(["--model", name, "--cuts", str(cut)]))
        with Working(f"Loading the first layers of {name} …"):
            from sliceserve.client.sync import SplitLLM

            llm = stack.enter_context(SplitLLM(server.url, api_key=server.api_key, config=settings))
        text = _answer(llm, prompt, max_tokens, sys.stderr if json else sys.stdout)
        stats = llm.stats
        if json:
            import msgspec

            typer.echo(msgspec.json.encode(_report(llm, stats, text, settings.codec.name)))
        else:
            stdout.print(cost_table(stats, llm.split, llm.num_layers, settings.codec.name))


def _half(model: str) -> int:
    """A server that offers one cut needs but one profile of the codec."""
    from sliceserve.models.resolve import resolve_model
    from sliceserve.models.spec import ModelSpec

    return ModelSpec.load(resolve_model(model)).num_layers // 2


def _answer(llm: "SplitLLM", prompt: str, max_tokens: int, out: Any) -> str:
    """The answer, written to ``out`` as it comes."""
    pieces = []
    messages = [{"role": "user", "content": prompt}]
    for chunk in llm.stream(messages, max_tokens=max_tokens):
        pieces.append(chunk.text)
        out.write(chunk.text)
        out.flush()
    out.write("\n")
    return "".join(pieces)


def _report(llm: "SplitLLM", stats: "SessionStats", text: str, codec: str) -> dict[str, Any]:
    total = stats.total
    return {
        "text": text,
        "prompt_tokens": total.num_prompt_tokens,
        "tokens": total.num_tokens,
        "tokens_per_s": total.tokens_per_s,
        "ttft_s": total.ttft_s,
        "num_layers": llm.num_layers,
        "split": llm.split,
        "codec": codec,
        "uplink_bytes_per_token": stats.uplink_bytes_per_token,
        "uplink_reduction_vs_fp16": stats.uplink_reduction_vs_fp16,
        "server_compute_share": server_share(stats),
    }
