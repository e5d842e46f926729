"""Client processes: started, begun together, and listened to."""

import asyncio
import contextlib
import itertools
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec

from sliceserve.cli.bench.fleet_messages import Assignment, Ended, Failed, Outcome, Ready

_STOP_TIMEOUT_S = 15.0
# One line of a report; the timeline of a request with a million tokens fits.
_MAX_LINE_BYTES = 1 << 25


class FleetError(RuntimeError):
    """The clients cannot begin or cannot go on; a sentence for the user."""


class Fleet:
    """Processes whose clients are all connected."""

    def __init__(self, workers: "Sequence[_Worker]") -> None:
        self._workers = workers

    async def run(self, on_outcome: Callable[[], None]) -> tuple[float, list[Outcome]]:
        """Let all clients begin together. Returns the seconds until the last request has ended,
        and what came of each; ``on_outcome`` is called as they end. Raises FleetError."""
        started = time.perf_counter()
        for worker in self._workers:
            worker.begin()
        outcomes = await asyncio.gather(*(worker.outcomes(on_outcome) for worker in self._workers))
        return time.perf_counter() - started, list(itertools.chain(*outcomes))


@contextlib.asynccontextmanager
async def start_fleet(assignments: Sequence[Assignment]) -> AsyncIterator[Fleet]:
    """One process for each assignment; leaving the context ends them. Raises FleetError."""
    async with contextlib.AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(_start(one)) for one in assignments]
        for worker in workers:
            await worker.wait_ready()
        yield Fleet(workers)


class _Worker:
    def __init__(self, process: asyncio.subprocess.Process, assignment: Assignment) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout
        self._stdin.write(msgspec.json.encode(assignment) + b"\n")

    async def wait_ready(self) -> None:
        await self._stdin.drain()
        report = await self._receive()
        if isinstance(report, Failed):
            raise FleetError(f"the clients cannot start: {report.error}")

    def begin(self) -> None:
        self._stdin.write(b"\n")

    async def outcomes(self, on_outcome: Callable[[], None]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        while not isinstance(report := await self._receive(), Ended):
            if isinstance(report, Outcome):
                outcomes.append(report)
                on_outcome()
        return outcomes

    async def _receive(self) -> Ready | Failed | Outcome | Ended:
        if not (line := await self._stdout.readline()):
            raise FleetError("a client process ended before its work was done; its words are above")
        return msgspec.json.decode(line, type=Ready | Failed | Outcome | Ended)


@contextlib.asynccontextmanager
async def _start(assignment: Assignment) -> AsyncIterator[_Worker]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "sliceserve.cli.bench.client_worker",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_MAX_LINE_BYTES,
        # Ctrl-C in the terminal is for the command, which ends its clients.
        start_new_session=True,
    )
    try:
        yield _Worker(process, assignment)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(process.wait(), _STOP_TIMEOUT_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
