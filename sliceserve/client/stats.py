"""What a split request cost: tokens, bytes on the wire, and where the time went."""

from dataclasses import dataclass, field, fields
from operator import add, sub


@dataclass(slots=True)
class TokenParts:
    """Where the time of ``num_tokens`` tokens went, none of them the first of its request.

    On this side: ``head_s`` in the layers that run here, their queue included, and ``encode_s`` in
    the codec. On the server, as it says: ``queue_s``, ``tail_s`` and ``sample_s``; one that is too
    old to say has all of its busy time in ``tail_s``, and its queue in ``link_s``: what is left of
    the time from a packet's sending to the token's arrival."""

    num_tokens: int = 0
    head_s: float = 0.0
    encode_s: float = 0.0
    link_s: float = 0.0
    queue_s: float = 0.0
    tail_s: float = 0.0
    sample_s: float = 0.0

    @property
    def seconds(self) -> dict[str, float]:
        """By part, in the order in which a token passes them."""
        return {
            "head": self.head_s,
            "encode": self.encode_s,
            "link": self.link_s,
            "queue": self.queue_s,
            "tail": self.tail_s,
            "sample": self.sample_s,
        }

    def __add__(self, other: "TokenParts") -> "TokenParts":
        return TokenParts(
            self.num_tokens + other.num_tokens,
            *map(add, self.seconds.values(), other.seconds.values()),
        )

    def __sub__(self, other: "TokenParts") -> "TokenParts":
        return TokenParts(
            self.num_tokens - other.num_tokens,
            *map(sub, self.seconds.values(), other.seconds.values()),
        )


@dataclass(slots=True)
class RequestStats:
    """Counts of one request, or of many added up. Bytes are whole WebSocket messages, as
    `sliceserve.transport.link.wire_bytes` counts them; times are in seconds.

    ``num_packets``: hidden states sent, repeats not counted, though their bytes are.
    ``num_cached_server``: hidden states not sent, for the server held them since an earlier
    request. ``num_cached_head``: those not computed, for they were kept here. ``head_s``: busy time
    of the layers that run here. ``server_s``: busy time of the server. ``link_s``: from the last
    packet that a token needs until the token's arrival, less the server's busy time: the wire, the
    server's queue, and time without a connection. ``ttft_s``: from the call to the first token;
    ``decode_s``: from the first to the last. ``parts`` tells that time by part.
    """

    num_requests: int = 0
    num_prompt_tokens: int = 0
    num_tokens: int = 0
    num_packets: int = 0
    num_cached_server: int = 0
    num_cached_head: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    head_s: float = 0.0
    server_s: float = 0.0
    link_s: float = 0.0
    ttft_s: float = 0.0
    decode_s: float = 0.0
    parts: TokenParts = field(default_factory=TokenParts)

    @property
    def tokens_per_s(self) -> float:
        """Rate of the tokens after the first, of one request; 0 while there are none."""
        num_decoded = self.num_tokens - self.num_requests
        return num_decoded / self.decode_s if self.decode_s > 0 and num_decoded > 0 else 0.0

    @property
    def uplink_bytes_per_token(self) -> float:
        """Bytes sent for each hidden state, everything included; 0 while there are none."""
        return self.bytes_up / self.num_packets if self.num_packets else 0.0

    @property
    def downlink_bytes_per_token(self) -> float:
        """Bytes received for each sampled token; 0 while there are none."""
        return self.bytes_down / self.num_tokens if self.num_tokens else 0.0

    def add(self, other: "RequestStats") -> None:
        """Add each count of ``other`` to this one's."""
        for one in fields(RequestStats):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))


@dataclass(frozen=True, slots=True)
class SessionStats:
    """A moment of a session: ``total`` over all requests, live ones included.

    ``num_reconnects`` is how often a lost connection came back; ``hidden_size`` is the model's.
    """

    hidden_size: int
    num_live: int = 0
    num_reconnects: int = 0
    total: RequestStats = field(default_factory=RequestStats)

    @property
    def uplink_bytes_per_token(self) -> float:
        return self.total.uplink_bytes_per_token

    @property
    def downlink_bytes_per_token(self) -> float:
        return self.total.downlink_bytes_per_token

    @property
    def uplink_reduction_vs_fp16(self) -> float:
        """How many times fewer bytes go up than 16 bits per element would take; 0 before the
        first packet."""
        sent = self.uplink_bytes_per_token
        return self.fp16_bytes_per_token / sent if sent else 0.0

    @property
    def fp16_bytes_per_token(self) -> int:
        """Of a hidden state that nobody has compressed."""
        return 2 * self.hidden_size
