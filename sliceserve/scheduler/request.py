"""One request, as the scheduler sees it."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from sliceserve.configs import SamplingParams
from sliceserve.scheduler.plan import FinishReason, Scoring

if TYPE_CHECKING:
    from sliceserve.scheduler.ordering import Queue
    from sliceserve.scheduler.prefix_cache import CachedBlock

# Who gives way to whom, lower first; no two are equal.
Rank = tuple[int, int]


class Request:
    """Positions that are known, and how many of them are computed.

    ``inputs`` are what is known, by position: token ids where ``entry_layer`` is 0, packets above.
    They are kept for as long as the request lives and replayed after a preemption. ``outputs`` are
    the tokens sampled so far, those given at opening included; their positions follow the
    prompt's, and ``num_tokens`` counts both: it is the position of the next one. ``packets``
    (heads) have been given out, those of the first ``num_emitted`` positions.

    How known grows: by each sampled token in a whole model; by what the client sends in a head or
    a tail. Scheduling lets computed catch up with known, and nothing else.

    ``block_tables`` are the blocks that it holds, by segment, and ``capacity`` the positions that
    they have room for. ``cached_blocks`` are the leading ones of its blocks that it shares with the
    prefix cache, ``digests`` the names of what is known, block by block. Of the prompt's positions
    ``num_reached`` have been computed or found in the cache at least once, ``num_cached`` of these
    found.

    It ends with a token of ``end_token_ids``, or with prompt and answer as long as ``max_len``.

    ``prompt`` has the prompt's token ids where the sampler needs them, else nothing. Where their
    logprobs are wanted, the rows of the first ``num_to_score`` positions are scored, each once; of
    the first ``num_scored`` that is done.

    ``credit`` (tails) is the position up to which the client may send, ``num_packet_bytes`` the
    size of what it has sent.

    ``tenant`` is on whose account it runs; a lower ``priority`` is more urgent. ``rank`` and
    ``num_charged`` (positions below it have been charged to the tenant) are the policy's, ``queue``
    is where the request stands, if anywhere.

    The scheduler alone changes a request once it has been added.
    """

    __slots__ = (
        "block_tables",
        "cached_blocks",
        "capacity",
        "codec",
        "credit",
        "digests",
        "end_token_ids",
        "entry_layer",
        "inputs",
        "is_head",
        "max_len",
        "num_cached",
        "num_charged",
        "num_computed",
        "num_packet_bytes",
        "num_prompt",
        "num_reached",
        "num_scored",
        "num_to_score",
        "num_tokens",
        "outputs",
        "packets",
        "priority",
        "prompt",
        "queue",
        "rank",
        "request_id",
        "sampling",
        "tenant",
    )

    def __init__(
        self,
        request_id: str,
        *,
        num_prompt: int,
        prompt: Sequence[int] = (),
        outputs: Sequence[int] = (),
        entry_layer: int = 0,
        is_head: bool = False,
        sampling: SamplingParams,
        codec: str | None = None,
        tenant: str = "",
        priority: int = 0,
    ) -> None:
        """``prompt`` holds the ``num_prompt`` token ids of a request that enters at layer 0. For a
        tail, whose packets come by ``Scheduler.append`` under ``codec``, it may be empty unless
        ``sampling`` needs it. Where there are ``outputs`` the prompt's logprobs are known: they
        came before."""
        self.request_id = request_id
        self.entry_layer = entry_layer
        self.is_head = is_head
        self.sampling = sampling
        self.codec = codec
        self.tenant = tenant
        self.priority = priority
        self.num_prompt = num_prompt
        samples = not is_head
        self.prompt: Sequence[int] = list(prompt) if samples and sampling.needs_prompt else ()
        scores = samples and sampling.prompt_logprobs is not None and not outputs
        self.num_to_score = num_prompt - 1 if scores else 0
        self.num_scored = 0
        self.outputs = list(outputs)
        self.num_tokens = num_prompt + len(outputs)
        # Ids or packets, never both: list[int] | list[bytes] cannot be extended in one place.
        self.inputs: list[Any] = [*prompt, *outputs] if entry_layer == 0 else []
        self.num_computed = 0
        self.packets: list[bytes] = []
        self.num_reached = 0
        self.num_cached = 0
        self.max_len = 0
        self.end_token_ids: Collection[int] = ()
        self.credit = 0
        self.num_packet_bytes = 0
        self.num_charged = 0
        self.rank: Rank = (-1, -1)
        self.queue: Queue | None = None
        self.block_tables: list[list[int]] = []
        self.capacity = 0
        self.cached_blocks: list[CachedBlock] = []
        self.digests: list[bytes] = []

    @property
    def num_known(self) -> int:
        return len(self.inputs)

    @property
    def num_emitted(self) -> int:
        return len(self.packets)

    @property
    def num_pending(self) -> int:
        return len(self.inputs) - self.num_computed

    @property
    def holds_blocks(self) -> bool:
        return self.capacity > 0

    def leave_queue(self) -> None:
        if self.queue is not None:
            self.queue.remove(self)
            self.queue = None

    def extend(self, token_id: int) -> FinishReason | None:
        """A token was sampled. Why it is the last, if it is."""
        self.outputs.append(token_id)
        self.num_tokens += 1
        if self.entry_layer == 0:
            self.inputs.append(token_id)
        if token_id in self.end_token_ids:
            return "stop"
        return "length" if self.num_tokens >= self.max_len else None

    def scoring(self, stop: int) -> Scoring | None:
        """What rows from the computed positions up to ``stop`` score of the prompt. A replay passes
        positions that have been scored, and scores none of them again."""
        num_top = self.sampling.prompt_logprobs
        first = max(self.num_computed, self.num_scored)
        stop = min(stop, self.num_to_score)
        if num_top is None or first >= stop:
            return None
        return Scoring(first - self.num_computed, self.prompt[first + 1 : stop + 1], num_top)
