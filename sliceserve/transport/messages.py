"""The messages of `sliceserve.v1`. docs/protocol.md tells how they follow each other."""

from typing import Annotated

import msgspec

from sliceserve.configs import SamplingParams
from sliceserve.tracing import TRACE_PARENT

SUBPROTOCOL = "sliceserve.v1"
PROTOCOL_VERSION = 4
# What a Hello speaks that names no version. Servers still serve it, without prefixes.
OLDEST_VERSION = 1
# What servers before this version would let pass and not do.
_NEWER_SETTINGS_VERSION = 3
_NEWER_SETTINGS = (
    "min_tokens",
    "logit_bias",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "prompt_logprobs",
    "guide",
)
# The first that has Times, times with its Tokens, and traces.
TIMES_VERSION = 3
# The first whose Welcome may let packets come early.
EARLY_VERSION = 4

# Request ids, positions and token ids: what the numbers of a data frame hold.
Uint32 = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
Int32 = Annotated[int, msgspec.Meta(ge=-(1 << 31), lt=1 << 31)]
# A time that one can wait: neither NaN nor endless.
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
# Longer than a request can live, and short enough to be added up.
Microseconds = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
# A W3C traceparent, or none.
TraceParent = Annotated[str, msgspec.Meta(pattern=f"^({TRACE_PARENT})?$", max_length=55)]
# Names the packets of all positions up to the end of a block.
Digest = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]


class Control(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A typed control message; its body is MessagePack, validated on decode. A field that has its
    default is not sent, so a peer of an older version is told of none that it does not know."""


class Hello(Control, frozen=True, kw_only=True):
    """Client → server, first. ``fingerprint`` identifies the client's model, ``cut`` the layer at
    which its rows enter, ``codec`` the wire id of its packets; with ``hide_tokens`` these must not
    carry token ids. ``resume_token`` from an earlier Welcome claims that session's requests."""

    protocol: int = OLDEST_VERSION
    fingerprint: str
    cut: int | None = None
    codec: str
    hide_tokens: bool = False
    resume_token: str | None = None


class Welcome(Control, frozen=True, kw_only=True):
    """Server → client: what was chosen, and the limits. ``profile`` is the digest of the codec's
    profile, if it needs one. ``resume_token`` is a secret of this session. ``max_frame_tokens``
    bounds the tokens of one data frame. ``block_size`` is how many positions one digest of
    ``Open.prefix`` covers; 0: the server keeps no prefixes, or the client knows of none. Packets
    of the first ``early_tokens`` positions of a request that is new to the server need not wait
    for Opened."""

    protocol: int = OLDEST_VERSION
    cut: int
    codec: str
    profile: str | None = None
    model: str
    num_layers: int
    max_model_len: int
    max_requests: int
    max_frame_tokens: int
    max_frame_bytes: int
    resume_token: str
    resume_timeout_s: Seconds
    block_size: int = 0
    early_tokens: int = 0


class Open(Control, frozen=True, kw_only=True):
    """Client → server: start a request, or take it up again after a cut of the line.

    ``request_id`` is the client's, unique in its session. ``num_prompt`` positions come before the
    first sampled token; ``outputs`` are the tokens already sampled, whose positions follow.
    ``prefix`` names whole blocks of packets that the client has, from position 0 on, and need not
    send where the server has them still. A lower ``priority`` is more urgent, where the server's
    policy looks at it. ``prompt_ids`` are the prompt's token ids; for a ``sampling`` that does not
    need them they stay empty. ``trace_parent`` names the span of the client's, in the W3C's words,
    that the server's belong under."""

    request_id: Uint32
    num_prompt: Uint32
    sampling: SamplingParams
    outputs: list[Uint32] = []
    prefix: list[Digest] = []
    priority: Int32 = 0
    prompt_ids: list[Uint32] = []
    trace_parent: TraceParent = ""


class Opened(Control, frozen=True, kw_only=True):
    """Server → client: ``next_position`` is the first position whose packet is wanted (above 0
    when the server still holds the request, or blocks of its prefix), ``credit`` the position up to
    which packets may be sent."""

    request_id: Uint32
    next_position: Uint32
    credit: Uint32


class Credit(Control, frozen=True, kw_only=True):
    """Server → client: positions below ``credit`` may now be sent. It never falls."""

    request_id: Uint32
    credit: Uint32


class Want(Control, frozen=True, kw_only=True):
    """Server → client: a frame left a gap; send again from ``next_position`` on."""

    request_id: Uint32
    next_position: Uint32


class Alternative(msgspec.Struct, frozen=True, array_like=True):
    token_id: Uint32
    logprob: float


class TokenTimes(msgspec.Struct, frozen=True, array_like=True):
    """What passed on the server from the moment that it had all that a token needs, microseconds:
    until a pass for it began, through the layers, and to choose it."""

    queue_us: Microseconds
    tail_us: Microseconds
    sample_us: Microseconds


class Token(Control, frozen=True, kw_only=True):
    """Server → client: the token at ``position``. ``finish_reason`` ends the request.
    ``server_us``: busy time of the server for this request since its last Token, microseconds;
    ``times``, for clients of version 3 and later: how long the server had the token in hand, other
    requests' work included."""

    request_id: Uint32
    position: Uint32
    token_id: Uint32
    logprob: float | None = None
    top: list[Alternative] = []
    finish_reason: str | None = None
    server_us: int = 0
    times: TokenTimes | None = None


class PromptToken(msgspec.Struct, frozen=True, array_like=True):
    """A token of the prompt; its ``rank`` among all tokens there is 1 for the likeliest."""

    token_id: Uint32
    logprob: float
    rank: Uint32
    top: list[Alternative] = []


class PromptLogprobs(Control, frozen=True, kw_only=True):
    """Server → client: the logprobs of the prompt's tokens at ``position`` and on. All but position
    0, which nothing stands before, come in order before the first Token."""

    request_id: Uint32
    position: Uint32
    tokens: list[PromptToken]


class Cancel(Control, frozen=True, kw_only=True):
    """Client → server: forget the request. Nothing more is sent about it."""

    request_id: Uint32


class Error(Control, frozen=True, kw_only=True):
    """Either way. ``code`` is for programs, ``message`` for people. With a ``request_id`` it ends
    that request alone, without one the connection. ``retry_after_s``: another try may succeed."""

    code: str
    message: str
    request_id: Uint32 | None = None
    retry_after_s: Seconds | None = None


class Times(Control, frozen=True, kw_only=True):
    """Client → server, version 3 and later: where the time of ``num_tokens`` tokens went, none of
    them the first of its request, that no Times has told of yet. ``head_us`` in the client's
    layers, ``encode_us`` in its codec, ``link_us`` on the way there and back, all in microseconds.
    It is for the server's statistics alone."""

    num_tokens: Uint32
    head_us: Microseconds = 0
    encode_us: Microseconds = 0
    link_us: Microseconds = 0


class Drain(Control, frozen=True, kw_only=True):
    """Server → client: the server is going away; live requests may finish within ``seconds``, new
    ones should go elsewhere."""

    seconds: Seconds


class Bye(Control, frozen=True, kw_only=True):
    """Either way: the sender will close, and keeps nothing for a resume."""


def newer_settings(sampling: SamplingParams, protocol: int) -> list[str]:
    """The names of settings that ``sampling`` uses and a server that speaks ``protocol`` does not
    know."""
    if protocol >= _NEWER_SETTINGS_VERSION:
        return []
    defaults = SamplingParams()
    return [name for name in _NEWER_SETTINGS if getattr(sampling, name) != getattr(defaults, name)]
