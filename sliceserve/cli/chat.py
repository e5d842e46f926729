"""`sliceserve chat`: a conversation in the terminal, with a split model."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from sliceserve.cli import options
from sliceserve.cli.console import Working, stderr
from sliceserve.cli.cost import cost_table
from sliceserve.configs import ClientConfig

if TYPE_CHECKING:
    from sliceserve.client.sync import SplitLLM

_HELP = "/reset begins anew, /stats shows what it cost, /quit ends it; Ctrl-C stops an answer"


@options.takes(ClientConfig)
def chat(
    settings: ClientConfig,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 512,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 always takes the likeliest token.")
    ] = 0.0,
    system: Annotated[
        str | None, typer.Option(help="Instructions that stand before the conversation.")
    ] = None,
) -> None:
    """Talk to a model whose first layers run here. Reads lines from a pipe, too."""
    name = settings.model.model
    with Working(f"Loading the first layers of {name}, connecting to {settings.server} …"):
        from sliceserve.client.sync import SplitLLM

        llm = SplitLLM(config=settings)
    with llm:
        _Chat(llm, system, max_tokens, temperature).run()


class _Chat:
    """One conversation after the other; ``messages`` is the present one."""

    def __init__(
        self, llm: "SplitLLM", system: str | None, max_tokens: int, temperature: float
    ) -> None:
        self._llm = llm
        self._start = [{"role": "system", "content": system}] if system else []
        self._messages = list(self._start)
        self._params = {"max_tokens": max_tokens, "temperature": temperature}
        self._interactive = sys.stdin.isatty()

    def run(self) -> None:
        if self._interactive:
            where = f"{self._llm.split} of {self._llm.num_layers} layers here"
            stderr.print(f"{where}, {self._llm.codec} on the wire. {_HELP}.", markup=False)
        for line in self._lines():
            if line == "/quit":
                return
            if line == "/reset":
                self._messages = list(self._start)
            elif line == "/stats":
                llm = self._llm
                stderr.print(cost_table(llm.stats, llm.split, llm.num_layers, llm.codec))
            elif line.startswith("/"):
                stderr.print(f"There is no command {line}: {_HELP}.", markup=False)
            elif line:
                self._answer(line)

    def _lines(self) -> Iterator[str]:
        if self._interactive:
            # Importing it gives input() its line editing and history.
            import readline  # noqa: F401
        while True:
            try:
                yield input("> " if self._interactive else "").strip()
            except (EOFError, KeyboardInterrupt):
                return

    def _answer(self, question: str) -> None:
        from sliceserve.engine.generation import GenerationError

        conversation = [*self._messages, {"role": "user", "content": question}]
        pieces: list[str] = []
        try:
            for chunk in self._llm.stream(conversation, **self._params):
                pieces.append(chunk.text)
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
        except KeyboardInterrupt:
            if not self._interactive:
                raise
        except GenerationError as error:
            if not self._interactive:
                raise
            stderr.print(f"Error: {error}", markup=False)
            return
        finally:
            sys.stdout.write("\n")
        self._messages = [*conversation, {"role": "assistant", "content": "".join(pieces)}]
