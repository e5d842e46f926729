"""Tensor parallelism: one engine over several processes, each with a part of every layer.

Rank 0 is the engine: it schedules, decodes packets and samples. The others, its *followers*, are
processes that it starts (``engine.follower``); they run the layers and nothing else. Before a pass
each is told through a pipe which rows there are, and then the rows' hidden states are broadcast.
Followers end when that pipe does, and the engine ends when one of them has.
"""

import contextlib
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta

import msgspec
import torch
import torch.distributed as dist
from torch.nn.functional import pad

from sliceserve.configs import EngineConfig
from sliceserve.engine.batch import Rows
from sliceserve.models.shard import Shard

# A rank may load weights or compile kernels meanwhile; one that dies is noticed at once.
_TIMEOUT = timedelta(minutes=5)
_MEETING_TIMEOUT = timedelta(minutes=2)
_GRACE_S = 5.0
_LOOPBACK = "127.0.0.1"
_END = b""


class RanksLost(RuntimeError):
    """A rank has ended, and the engine with it; a sentence for the operator."""


class Start(msgspec.Struct, frozen=True):
    """The first message to a follower: which rank it is, the port where the ranks meet, how many
    threads it may compute with, and the settings that ``Layers.load`` wants."""

    rank: int
    port: int
    num_threads: int
    config: EngineConfig


class SentRows(msgspec.Struct, frozen=True, array_like=True):
    """``Rows`` of one request."""

    entry_layer: int
    start: int
    num_tokens: int
    block_tables: list[list[int]]


class Pass(msgspec.Struct, frozen=True, array_like=True):
    """Every further message: the rows of a pass, and those among them whose logits are wanted, in
    the groups in which they are."""

    requests: list[SentRows]
    logit_rows: list[list[int]]


class RankGroup(Shard):
    """This process as one of the ranks, which call every method together: NCCL between GPUs, gloo
    between CPUs. A process can be in one. Methods raise RanksLost."""

    def __init__(self, start: Start, listener: socket.socket | None = None) -> None:
        """``listener`` listens at the port, on rank 0."""
        self.rank = start.rank
        self.size = start.config.tensor_parallel
        self._device = self.device(start.config.model.device)
        on_gpu = self._device.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(self._device)
        else:
            torch.set_num_threads(start.num_threads)
            # Or else gloo listens on the address of the host's name.
            loopback = "lo" if sys.platform == "linux" else "lo0"
            os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
        store = dist.TCPStore(
            _LOOPBACK,
            start.port,
            self.size,
            is_master=listener is not None,
            timeout=_MEETING_TIMEOUT,
            wait_for_workers=False,
            master_listen_fd=None if listener is None else listener.detach(),
        )
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=store,
            rank=self.rank,
            world_size=self.size,
            timeout=_TIMEOUT,
            device_id=self._device if on_gpu else None,
        )

    def device(self, kind: str) -> torch.device:
        return torch.device(kind, self.rank) if kind == "cuda" else torch.device(kind)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        self._together(dist.all_reduce, x)
        return x

    def broadcast(self, x: torch.Tensor) -> None:
        """Rank 0's ``x`` into that of the others."""
        self._together(dist.broadcast, x, 0)

    def gather(self, x: torch.Tensor, width: int) -> torch.Tensor:
        x = pad(x, (0, self.largest(width) - x.shape[1])).contiguous()
        parts = [torch.empty_like(x) for _ in range(self.size)] if self.rank == 0 else None
        self._together(dist.gather, x, parts, 0)
        return x if parts is None else torch.cat(parts, dim=1)[:, :width]

    def minimum(self, value: int) -> int:
        x = torch.tensor(value, device=self._device)
        self._together(dist.all_reduce, x, dist.ReduceOp.MIN)
        return int(x)

    def _together(self, operation: Callable[..., object], *args: object) -> None:
        try:
            operation(*args)
        except RuntimeError as error:
            raise self._lost(error) from error

    def _lost(self, error: RuntimeError) -> RanksLost:
        return RanksLost(f"rank {self.rank} of {self.size} has lost the others: {error}")


class Leader(RankGroup):
    """Rank 0, which starts the others, watches them, and ends them."""

    def __init__(self, config: EngineConfig) -> None:
        """``config`` is for ``Layers.load``."""
        self._has_joined = self._closing = False
        self._reason: str | None = None
        self._has_reason = threading.Event()
        self._encoder = msgspec.msgpack.Encoder()
        self._num_threads_before = torch.get_num_threads()
        num_threads = max(1, self._num_threads_before // config.tensor_parallel)
        self._followers: list[_Follower] = []
        try:
            # Listens before anybody is told the port, so that nobody else can take it.
            with socket.create_server((_LOOPBACK, 0)) as listener:
                port = listener.getsockname()[1]
                starts = [
                    Start(rank, port, num_threads, config) for rank in range(config.tensor_parallel)
                ]
                for start in starts[1:]:
                    self._followers.append(_Follower(start.rank, self._encoder.encode(start)))
                for follower in self._followers:
                    follower.expect_ready()
                    threading.Thread(target=self._watch, args=(follower,), daemon=True).start()
                super().__init__(starts[0], listener)
                self._has_joined = True
        except BaseException:
            self.close()
            raise

    def share(
        self, requests: Sequence[Rows], logit_rows: list[list[int]], hidden: torch.Tensor
    ) -> None:
        """Begin a pass on all ranks: its rows, groups of them whose logits will be computed, and
        their hidden states (T, hidden)."""
        self.expect_alive()
        rows = [SentRows(r.entry_layer, r.start, r.num_tokens, r.block_tables) for r in requests]
        message = self._encoder.encode(Pass(rows, logit_rows))
        for follower in self._followers:
            # One that is gone is missed below.
            with contextlib.suppress(OSError):
                follower.pipe.send_bytes(message)
        self.broadcast(hidden)

    def expect_alive(self) -> None:
        """Raise RanksLost if a follower has ended."""
        if self._reason is not None:
            raise RanksLost(self._reason)

    def close(self) -> None:
        """End the followers, and leave the group. A second call does nothing."""
        self._closing = True
        for follower in self._followers:
            follower.end()
        if self._has_joined:
            self._has_joined = False
            dist.destroy_process_group()
        torch.set_num_threads(self._num_threads_before)

    def _watch(self, follower: "_Follower") -> None:
        reason = follower.wait()
        if self._closing or self._reason is not None:
            return
        self._reason = (
            f"rank {follower.rank} {reason}; no other can go on without it: start the engine again"
        )
        self._has_reason.set()
        if self._has_joined and self._device.type == "cuda":
            # Sums on a GPU would wait for the lost rank; now they end, and mean nothing.
            dist.group.WORLD.abort()

    def _lost(self, error: RuntimeError) -> RanksLost:
        self._has_reason.wait(_GRACE_S)
        return RanksLost(self._reason) if self._reason is not None else super()._lost(error)


class _Follower:
    """A process, and the pipe to it."""

    def __init__(self, rank: int, start: bytes) -> None:
        self.rank = rank
        self.pipe, theirs = multiprocessing.Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sliceserve.engine.follower", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self.pipe.send_bytes(start)

    def expect_ready(self) -> None:
        """Wait until the process can join the group. Raises RanksLost."""
        try:
            if self.pipe.poll(_MEETING_TIMEOUT.total_seconds()) and self.pipe.recv_bytes():
                return
            reason = f"did not start within {_MEETING_TIMEOUT}"
        except (EOFError, OSError):
            reason = self.wait()
        raise RanksLost(f"rank {self.rank} {reason}")

    def wait(self) -> str:
        """How the process has ended, once it has."""
        words = ""
        with contextlib.suppress(EOFError, OSError):
            words = self.pipe.recv_bytes().decode()
        code = self._process.wait()
        return f"ended: {words}" if words else f"ended unexpectedly with exit code {code}"

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self.pipe.send_bytes(_END)
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
