"""What an engine is told and what it answers; the same in a thread and across processes.

Everything that must outlive a connection is keyed by ``request_id``, which the caller makes unique
(and, where requests must not be guessed, secret).
"""

import msgspec

from sliceserve.configs import SamplingParams
from sliceserve.engine.distribution import Distribution
from sliceserve.scheduler.plan import FinishReason, PromptLogprob, SampledToken


class Open(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Start a request, or attach again to one that lives.

    ``num_prompt`` positions come before the first token that this request samples; ``outputs`` are
    tokens already sampled (elsewhere, or before a cut of the line): their positions follow the
    prompt's. They count against ``max_tokens`` and are known to the caller, so are not reported
    again. With ``entry_layer`` 0 ``prompt`` holds the prompt's ``num_prompt`` token ids; above 0 it
    inputs come by ``AppendPackets``, under ``codec``: a wire id, or the ``packet_codec`` of one
    that has a profile; ``prompt`` holds the ids there too if ``sampling`` needs them.

    A head (an engine below the model's last layer) samples nothing: rows come back as packets, and
    tokens after the prompt come by ``AppendTokens``.

    ``tenant`` is on whose account the request runs, "" where tenants are not told apart; among
    waiting requests a lower ``priority`` goes first where the policy looks at it. With
    ``may_queue`` a request for which there is no room now waits for it, with credit 0; without it
    is refused.

    ``prefix`` (tails): digests of the whole blocks of packets that the client could send, as
    ``scheduler.prefix.block_digests`` makes them with the engine's ``block_size``. What is cached
    of them need not be sent: the answer's ``wanted`` is the first position that is.

    Answered by one ``RequestOutput`` with ``opened`` set.
    """

    request_id: str
    entry_layer: int = 0
    num_prompt: int
    prompt: list[int] = []
    outputs: list[int] = []
    sampling: SamplingParams = SamplingParams()
    codec: str | None = None
    tenant: str = ""
    priority: int = 0
    may_queue: bool = False
    prefix: list[bytes] = []


class AppendTokens(msgspec.Struct, tag=True, frozen=True):
    """Head engines: the tokens at positions ``[start, start + len(tokens))`` are known."""

    request_id: str
    start: int
    tokens: list[int]


# Packets of so many first positions may come before their client has heard of its credit.
EARLY_TOKENS = 512


class AppendPackets(msgspec.Struct, tag=True, frozen=True):
    """Tail engines: packets of positions from ``start`` on. Positions already held are ignored;
    a gap is answered by ``RequestOutput.wanted``, and so are early packets beyond the credit."""

    request_id: str
    start: int
    packets: list[bytes]


class Cancel(msgspec.Struct, tag=True, frozen=True):
    """Forget the request at once, without an answer. Unknown ids are ignored. Anybody who knows the
    id may say so, whoever opened it."""

    request_id: str


class Detach(msgspec.Struct, tag=True, frozen=True):
    """The caller's client has gone: keep the request for ``detached_timeout_s``, then drop it.
    An ``Open`` of the same id attaches again."""

    request_id: str


class GetStats(msgspec.Struct, tag=True, frozen=True):
    """Ask for ``EngineStats``."""


class GetInfo(msgspec.Struct, tag=True, frozen=True):
    """Ask for ``EngineInfo``; answered once the model is loaded."""


class PeerGone(msgspec.Struct, tag=True, frozen=True):
    """The process that talked to the engine as ``peer`` has died. Its split requests wait for
    ``detached_timeout_s``, so that clients can take them up through another process; those that
    began with tokens, which nobody can take up, are forgotten."""

    peer: bytes


RequestCommand = Open | AppendTokens | AppendPackets | Cancel | Detach
Command = GetInfo | GetStats | PeerGone | RequestCommand


class TokenTimes(msgspec.Struct, frozen=True, array_like=True):
    """Where the time of ``num_tokens`` tokens went in one engine, in seconds, each as its request
    has lived it: ``queue_s`` until the first step for it, ``layers_s`` until its last row was
    through the layers, ``exit_s`` to sample it, or to encode it in a head."""

    num_tokens: int = 0
    queue_s: float = 0.0
    layers_s: float = 0.0
    exit_s: float = 0.0

    def plus(self, other: "TokenTimes") -> "TokenTimes":
        return TokenTimes(
            self.num_tokens + other.num_tokens,
            self.queue_s + other.queue_s,
            self.layers_s + other.layers_s,
            self.exit_s + other.exit_s,
        )


class RequestOutput(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """News of one request. Unset fields say nothing.

    ``num_computed``: positions whose KV is in the cache; a client may have sent positions below
    ``credit``. ``opened``: the answer to ``Open``, be it "error". ``wanted``: the position that
    must come next (after ``Open``, and after a gap). ``tokens`` start at position ``start``; so do
    ``packets`` (heads), which come with ``opened`` for a prefix that a head has cached.
    ``prompt_logprobs`` are of the positions from ``prompt_start`` on; those of the whole prompt,
    but for its first token, come before the first of ``tokens`` or with it.
    ``num_cached``: how many of the prompt's positions were taken from the prefix cache so far;
    heads and tails know with ``opened``, requests that begin with tokens elsewhere by their first
    token. ``seconds``: busy time of this engine spent on the request since its last output;
    ``times`` tells what the token, or the packets of a head, took from beginning to end.
    ``finish_reason`` ends the request; with "error", ``error_code`` and ``error`` say why, and
    ``retry_after_s`` when another try may succeed.
    """

    request_id: str
    opened: bool = False
    num_computed: int = 0
    num_cached: int = 0
    credit: int = 0
    wanted: int | None = None
    start: int = 0
    tokens: list[SampledToken] = []
    packets: list[bytes] = []
    prompt_start: int = 0
    prompt_logprobs: list[PromptLogprob] = []
    seconds: float = 0.0
    times: TokenTimes | None = None
    finish_reason: FinishReason | None = None
    error_code: str | None = None
    error: str | None = None
    retry_after_s: float | None = None


def packet_codec(codec: str, profile: str | None) -> str:
    """What packets are coded under: the wire id, and the digest of its profile if it has one."""
    return codec if profile is None else f"{codec}@{profile}"


class ProfileInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A profile of ``codec`` (a wire id) for packets that enter at ``cut``. They carry no token
    ids where its ``predictor`` is "none". ``num_bytes`` of a file with the sha256 ``digest``."""

    codec: str
    cut: int
    predictor: str
    digest: str
    num_bytes: int


class EngineInfo(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """What an engine serves; fixed for its life.

    ``model_path`` is the folder with config.json and tokenizer.json; ``fingerprint`` a hash over
    configuration and weights. ``cuts`` are the entry layers open to split clients; ``thin`` says
    whether layer 0 is here too. ``codecs`` are wire ids, the preferred first; those that need a
    profile are offered where ``profiles`` has one. ``block_size`` is the tokens in a block of the
    prefix cache, 0 without one.
    """

    model: str
    model_path: str
    fingerprint: str
    dtype: str
    device: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    max_model_len: int
    first_layer: int
    stop_layer: int
    cuts: list[int]
    thin: bool
    codecs: list[str]
    profiles: list[ProfileInfo] = []
    eos_token_ids: list[int]
    block_size: int = 0

    @property
    def is_head(self) -> bool:
        """Whether rows leave as packets, below the model's last layer."""
        return self.stop_layer < self.num_layers

    def profile(self, codec: str, cut: int, hide_tokens: bool) -> ProfileInfo | None:
        """The profile for packets of ``codec`` that enter at ``cut``."""
        for profile in self.profiles:
            hides_tokens = profile.predictor == "none"
            if (profile.codec, profile.cut, hides_tokens) == (codec, cut, hide_tokens):
                return profile
        return None

    def packet_codecs(self, cut: int) -> list[str]:
        """What packets that enter at ``cut`` may be coded under."""
        with_profile = {profile.codec for profile in self.profiles}
        names = [codec for codec in self.codecs if codec not in with_profile]
        here = [profile for profile in self.profiles if profile.cut == cut]
        return names + [packet_codec(profile.codec, profile.digest) for profile in here]


class SegmentStats(msgspec.Struct, frozen=True, kw_only=True):
    """KV blocks of the layers ``[first, stop)``: ``num_free`` can be had, ``num_cached`` of them
    hold prefixes until then."""

    first: int
    stop: int
    num_blocks: int
    num_free: int
    num_cached: int = 0


class PathStats(msgspec.Struct, kw_only=True):
    """Of requests that enter as tokens, or of those that enter as packets, since start.

    ``token_times`` of all tokens but the first of each request. Of requests: ``queue_seconds``
    before the first step, ``prefill_seconds`` from there to the first token, ``decode_seconds``
    from there to the last, ``inference_seconds`` from the first step to the last token."""

    token_times: TokenTimes
    queue_seconds: Distribution
    prefill_seconds: Distribution
    decode_seconds: Distribution
    inference_seconds: Distribution


class EngineStats(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Counters since start (``num_*_total``, ``busy_seconds``) and the state now. ``num_queued``
    are not live yet: they wait to be admitted.

    ``num_prefix_queried_tokens_total`` are positions of prompts that were reached for the first
    time, ``num_prefix_hit_tokens_total`` those of them that the prefix cache had. Live requests
    keep ``held_packet_bytes`` of packets, cached blocks that nobody uses ``cached_packet_bytes``.
    ``step_tokens`` and ``step_requests`` are the sizes of steps; ``paths`` has those that this
    engine samples for, "thin" and "split".
    """

    num_live: int
    num_queued: int = 0
    num_running: int
    num_waiting: int
    num_detached: int
    num_steps_total: int
    num_tokens_total: int
    num_sampled_total: int
    num_preempted_total: int
    num_prefix_queried_tokens_total: int = 0
    num_prefix_hit_tokens_total: int = 0
    busy_seconds: float
    held_packet_bytes: int
    cached_packet_bytes: int = 0
    segments: list[SegmentStats]
    step_tokens: Distribution | None = None
    step_requests: Distribution | None = None
    paths: dict[str, PathStats] = {}


class EngineFailed(msgspec.Struct, tag=True, frozen=True):
    """The engine cannot go on; ``error`` is a sentence for the operator."""

    error: str


class Moved(msgspec.Struct, tag=True, frozen=True):
    """Another process has opened the request, or cancelled it: no more news of it comes here."""

    request_id: str


Answer = RequestOutput | EngineInfo | EngineStats | EngineFailed | Moved
