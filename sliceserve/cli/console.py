"""Where commands speak: results on standard output, everything else on standard error."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

# Colours, spinners and bars are rich's affair, and go to terminals only.
stdout = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)

# Where there is no terminal: how long something takes before it is told, and told again.
_TELL_AFTER_S = 2.0
_TELL_EVERY_S = 10.0


class Working:
    """Says what is being done while it is, as a context: with a spinner on a terminal; elsewhere in
    a line, once it has taken two seconds, and in another every ten if there is news."""

    def __init__(self, sentence: str) -> None:
        self._sentence = sentence
        self._told: str | None = None
        self._status = stderr.status(escape(sentence)) if stderr.is_terminal else None
        self._stopped = threading.Event()

    def __enter__(self) -> "Working":
        if self._status is not None:
            self._status.start()
        else:
            threading.Thread(target=self._tell_now_and_then, daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def say(self, sentence: str) -> None:
        """What is done now instead."""
        self._sentence = sentence
        if self._status is not None:
            self._status.update(escape(sentence))

    def stop(self) -> None:
        """It is done, or goes on without a word. May be called twice."""
        self._stopped.set()
        if self._status is not None:
            self._status.stop()

    def _tell_now_and_then(self) -> None:
        pause_s = _TELL_AFTER_S
        while not self._stopped.wait(pause_s):
            pause_s = _TELL_EVERY_S
            if (sentence := self._sentence) != self._told:
                self._told = sentence
                stderr.print(sentence, markup=False, soft_wrap=True)


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[], None]]:
    """How far work is, while the context is open; calling what it yields moves it on by one."""
    done = 0
    with measured(description) as update:

        def advance() -> None:
            nonlocal done
            done += 1
            update(done, total)

        update(0, total)
        yield advance


@contextmanager
def measured(description: str) -> Iterator[Callable[[int, int], None]]:
    """How far work is that says itself how much of how much is done: a bar on a terminal, a line
    now and then elsewhere."""
    if not stderr.is_terminal:
        yield _Lines(description).update
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=stderr, transient=True) as bar:
        task = bar.add_task(escape(description), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Lines:
    """For logs: what is over at once is not worth a line."""

    def __init__(self, description: str) -> None:
        self._description = description
        self._next_at = time.monotonic() + _TELL_AFTER_S

    def update(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now >= self._next_at:
            self._next_at = now + _TELL_EVERY_S
            stderr.print(f"{self._description}: {done} of {total}", markup=False, soft_wrap=True)
