"""What a client knows of one live request: a state machine without tasks or sockets."""

import asyncio
from typing import cast, get_args

from sliceserve.client.errors import RequestFailed
from sliceserve.client.stats import RequestStats
from sliceserve.configs import SamplingParams
from sliceserve.engine.generation import Generated
from sliceserve.engine.messages import TokenTimes
from sliceserve.scheduler.plan import FinishReason, Logprob, PromptLogprob, SampledToken
from sliceserve.scheduler.prefix import block_digests
from sliceserve.transport.frames import DataFrame, frames_for
from sliceserve.transport.messages import (
    TIMES_VERSION,
    Alternative,
    Open,
    PromptLogprobs,
    Token,
    Welcome,
    newer_settings,
)


class SplitRequest:
    """One request between the head, which gives packets, and the server, which gives tokens.

    Packets are kept as they were encoded until the request ends: whatever the server asks for
    again, or a new server for the first time, is sent from here. What the server need not be sent
    is for it to say: Open names the packets that the head has kept of earlier requests, and Opened
    the first that it lacks. ``steps`` is what the caller of ``generate`` receives. Times
    are `time.monotonic` seconds, passed in by whoever looks at the clock.
    """

    def __init__(
        self,
        request_id: int,
        prompt: list[int],
        sampling: SamplingParams,
        stats: RequestStats,
        now: float,
        priority: int = 0,
        trace_parent: str = "",
    ) -> None:
        self.request_id = request_id
        self.priority = priority
        self.trace_parent = trace_parent
        self.prompt = prompt
        self.sampling = sampling
        self.stats = stats
        self.steps: asyncio.Queue[Generated | RequestFailed] = asyncio.Queue()
        self.known_to_server = False
        self.finished = False
        self._outputs: list[int] = []
        self._prompt_logprobs: list[PromptLogprob] = []
        self._packets: list[bytes] = []
        self._num_kept: int | None = None
        # Some server has had all packets below the first; those of the second it had without our
        # sending them, and they have not been sent to another since.
        self._num_had = 0
        self._unsent: set[int] = set()
        self._postponed_until = now
        self._started_at = now
        self._first_token_at = now
        self.start_link(now)
        stats.num_requests += 1
        stats.num_prompt_tokens += len(prompt)

    @property
    def num_known(self) -> int:
        """Positions whose token is known: the prompt's and the outputs'."""
        return len(self.prompt) + len(self._outputs)

    def start_link(self, now: float) -> None:
        """The link is a new one: the server must be told of the request before anything else."""
        self._announced = False
        self._num_named = 0
        self._opened = False
        self._credit = 0
        # Positions below it may be sent before the request is opened.
        self._early_stop = 0
        self._next_position = 0
        self._link_began_at = now
        self._sent_at = now
        self._heard_at = now

    def begin(self, packets: list[bytes]) -> None:
        """The head has taken the request, and has these ``packets`` of its first positions from
        earlier ones. Only now can the server be told which it may have."""
        self.take_packets(0, packets)
        self._num_kept = len(packets)
        self.stats.num_cached_head += len(packets)

    def take_packets(self, start: int, packets: list[bytes]) -> None:
        """Keep what the head has encoded, positions ``start`` on."""
        if start != len(self._packets):
            raise RequestFailed(
                "internal_error",
                f"the head gave the packet of position {start}, expected {len(self._packets)}",
            )
        self._packets += packets

    @property
    def num_encoded(self) -> int:
        """Positions whose packets are here."""
        return len(self._packets)

    def count_head(self, start: int, times: TokenTimes) -> None:
        """What the head took for packets from ``start`` on."""
        if start >= len(self.prompt):
            parts = self.stats.parts
            parts.head_s += times.queue_s + times.layers_s
            parts.encode_s += times.exit_s

    def next_message(self, limits: Welcome, now: float) -> Open | DataFrame | None:
        """What may be sent now; None if it is somebody else's turn. Counts it as sent.

        Raises RequestFailed for a packet that fits no frame, and for what the server is too old to
        do.
        """
        if self._num_kept is None or now < self._postponed_until:
            return None
        if not self._announced:
            # A server that knew the request and has forgotten it may still have what it was sent.
            self._expect_understood(limits.protocol)
            num_named = len(self._packets) if self.known_to_server else self._num_kept
            return self._announce(self._packets[:num_named], limits, now)
        start = self._next_position
        credit = self._credit if self._opened else self._early_stop
        stop = min(len(self._packets), credit, start + limits.max_frame_tokens)
        if start >= stop:
            return None
        try:
            frame = next(
                frames_for(
                    self.request_id,
                    start,
                    self._packets[start:stop],
                    limits.max_frame_tokens,
                    limits.max_frame_bytes,
                )
            )
        except ValueError as error:
            raise RequestFailed("packet_too_large", str(error)) from error
        self._next_position += len(frame.packets)
        self._sent_at = now
        self._unsent.difference_update(range(start, self._next_position))
        self._count_packets(self._next_position)
        return frame

    def _expect_understood(self, protocol: int) -> None:
        if names := newer_settings(self.sampling, protocol):
            raise RequestFailed(
                "unsupported_protocol",
                f"{', '.join(names)}: the server speaks version {protocol} of the protocol and "
                "would do nothing about it; leave it out, or bring the server up to date",
            )

    def _announce(self, packets: list[bytes], limits: Welcome, now: float) -> Open:
        """``packets`` are those that the server may have."""
        block_size = limits.block_size
        prefix = block_digests(packets, block_size) if block_size > 0 else []
        # Else the server may hold packets, and only it can say where to begin.
        is_new = not self.known_to_server and not prefix
        self._early_stop = limits.early_tokens if is_new else 0
        self._announced = self.known_to_server = True
        self._sent_at = now
        self._num_named = len(prefix) * block_size
        return Open(
            request_id=self.request_id,
            num_prompt=len(self.prompt),
            sampling=self.sampling,
            outputs=list(self._outputs),
            prefix=prefix,
            priority=self.priority,
            prompt_ids=self.prompt if self.sampling.needs_prompt else [],
            trace_parent=self.trace_parent if limits.protocol >= TIMES_VERSION else "",
        )

    def postpone(self, seconds: float, patience_s: float, now: float) -> bool:
        """Send Open again after so long, for the server refused it for want of room and has taken
        nothing. False if it has, or if this would go on for longer than ``patience_s``."""
        if self._opened or now + seconds > self._link_began_at + patience_s:
            return False
        self._announced = False
        self._next_position = 0
        self._postponed_until = self._heard_at = now + seconds
        return True

    def open(self, next_position: int, credit: int, now: float) -> None:
        """The server has taken the request, holding the packets below ``next_position``: sent
        earlier, or named to it. RequestFailed if they were neither."""
        self._opened = True
        self._credit = credit
        if self._num_had < next_position <= self._num_named:
            self._unsent.update(range(self._num_had, next_position))
            self._count_packets(next_position)
        if next_position >= self._next_position:
            self.rewind(next_position, now)
        # Else packets were sent early, which the server had not seen when it said so. Those that it
        # does not take it will want.
        self._heard_at = now

    def grant(self, credit: int, now: float) -> None:
        self._heard_at = now
        self._credit = max(self._credit, credit)

    def rewind(self, next_position: int, now: float) -> None:
        """Send again from ``next_position`` on. RequestFailed if the server has been told of
        nothing there."""
        if next_position > self._num_had:
            raise RequestFailed(
                "protocol_error",
                f"the server wants position {next_position} next, but only positions below "
                f"{self._num_had} were ever sent or named to it",
            )
        self._heard_at = now
        self._next_position = next_position

    def take_token(self, token: Token, now: float) -> None:
        """Pass the next token on to ``steps``; ignore one that is here already (a server that goes
        on with a request repeats what may have been lost). RequestFailed for one that cannot be."""
        if token.position < self.num_known:
            return
        # Its logits come from the packet of the position before, which the server must have had.
        if token.position > self.num_known or self._num_had < self.num_known:
            raise RequestFailed(
                "protocol_error",
                f"the server sent a token for position {token.position}; the next is "
                f"{self.num_known}, and it has had {self._num_had} packets",
            )
        num_scored = len(self._prompt_logprobs)
        if self.sampling.prompt_logprobs is not None and num_scored < len(self.prompt) - 1:
            raise RequestFailed(
                "protocol_error",
                f"the server sent a token before the logprobs of prompt position {num_scored + 1}",
            )
        reason = _finish_reason(token.finish_reason)
        self._count_token(token, now)
        self._outputs.append(token.token_id)
        self.finished = reason is not None
        sampled = SampledToken(token.token_id, token.logprob, _alternatives(token.top))
        scores = self._prompt_logprobs if len(self._outputs) == 1 else []
        self.steps.put_nowait(Generated(sampled, reason, len(self._unsent), scores))

    def take_prompt_logprobs(self, message: PromptLogprobs, now: float) -> None:
        """Keep them for the first token; ignore those that are here already. RequestFailed for a
        gap, and for more than the prompt has."""
        num_had = len(self._prompt_logprobs)
        start, stop = message.position, message.position + len(message.tokens)
        if not 1 <= start <= num_had + 1 or stop > len(self.prompt):
            raise RequestFailed(
                "protocol_error",
                f"the server sent logprobs of prompt positions {start} to {stop - 1}; next is "
                f"{num_had + 1} of {len(self.prompt)}",
            )
        self._heard_at = now
        self._prompt_logprobs += [
            PromptLogprob(token.token_id, token.logprob, token.rank, _alternatives(token.top))
            for token in message.tokens[num_had + 1 - start :]
        ]

    def server_silence_s(self, now: float) -> float:
        """How long the server has owed an answer; 0 while it is the head's turn, and while the
        server lets the request wait for credit."""
        if self._num_kept is None:
            return 0.0
        if self._opened and self._next_position < self.num_known:
            return 0.0
        return now - max(self._sent_at, self._heard_at)

    def _count_packets(self, num_had: int) -> None:
        self._num_had = max(self._num_had, num_had)
        self.stats.num_packets = self._num_had - len(self._unsent)
        self.stats.num_cached_server = len(self._unsent)

    def _count_parts(self, token: Token, away_s: float) -> None:
        """Of the time between a packet's sending and its token's arrival."""
        queue_s, tail_s, sample_s = 0.0, token.server_us / 1e6, 0.0
        if (times := token.times) is not None:
            queue_s, tail_s = times.queue_us / 1e6, times.tail_us / 1e6
            sample_s = times.sample_us / 1e6
        parts = self.stats.parts
        parts.num_tokens += 1
        parts.link_s += max(0.0, away_s - queue_s - tail_s - sample_s)
        parts.queue_s += queue_s
        parts.tail_s += tail_s
        parts.sample_s += sample_s

    def _count_token(self, token: Token, now: float) -> None:
        server_s = token.server_us / 1e6
        away_s = now - self._sent_at
        self._heard_at = now
        self.stats.num_tokens += 1
        self.stats.server_s += server_s
        self.stats.link_s += max(0.0, away_s - server_s)
        if not self._outputs:
            self._first_token_at = now
            self.stats.ttft_s += now - self._started_at
        else:
            self.stats.decode_s = now - self._first_token_at
            self._count_parts(token, away_s)


def _alternatives(top: list[Alternative]) -> tuple[Logprob, ...]:
    return tuple(Logprob(other.token_id, other.logprob) for other in top)


def _finish_reason(name: str | None) -> FinishReason | None:
    if name is None:
        return None
    if name not in get_args(FinishReason):
        raise RequestFailed("protocol_error", f"the server ended the request with {name!r}")
    return cast(FinishReason, name)
