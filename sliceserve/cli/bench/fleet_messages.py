"""What crosses between `sliceserve bench serve` and its client processes, as JSON lines."""

import msgspec

from sliceserve.cli.bench.timeline import Timeline
from sliceserve.configs import ClientConfig, SamplingParams


class Recording(msgspec.Struct, frozen=True):
    """One answered prompt: the packets of its positions in order, and the tokens that came back.

    The last token's own packet is never sent, so there is one packet less than ``num_prompt``
    positions and tokens together."""

    cut: int
    num_prompt: int
    packets: list[bytes]
    tokens: list[int]


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """One client and its requests, one after the other: prompts for a head, or numbers of the
    assignment's recordings. The first comes ``start_s`` seconds after the beginning, and none
    later than ``stop_s`` if that is set."""

    index: int
    cut: int
    prompts: list[list[int]] = []
    replays: list[int] = []
    start_s: float = 0.0
    stop_s: float | None = None

    @property
    def num_requests(self) -> int:
        return len(self.prompts) + len(self.replays)


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """What one process does. ``config`` names the server, the model and the codec."""

    config: ClientConfig
    sampling: SamplingParams
    clients: list[Client]
    recordings: list[Recording] = []


class Ready(msgspec.Struct, frozen=True, tag=True):
    """All clients of a process are connected."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The clients of a process cannot begin, and why."""

    error: str


class Ended(msgspec.Struct, frozen=True, tag=True):
    """All outcomes of a process have been told."""


class Outcome(msgspec.Struct, tag=True, kw_only=True):
    """One request, filled as it goes on. ``bytes_up`` are whole WebSocket messages;
    ``num_mismatches`` tokens unlike those of the recording; ``code`` and ``error`` are set if it
    failed, after the tokens of ``timeline``."""

    client: int
    cut: int
    timeline: Timeline
    num_packets: int = 0
    bytes_up: int = 0
    num_mismatches: int = 0
    code: str | None = None
    error: str | None = None
