"""The messages of `sliceserve.v1`. docs/protocol.md tells how they follow each other."""

import msgspec

from sliceserve.configs import SamplingParams

SUBPROTOCOL = "sliceserve.v1"
PROTOCOL_VERSION = 1


class Control(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, array_like=False
):
    """A typed control message; its body is MessagePack, validated on decode."""


class Hello(Control):
    """Client → server, first. ``fingerprint`` identifies the client's model, ``cut`` the layer at
    which its rows enter, ``codec`` the wire id of its packets. ``resume_token`` from an earlier
    Welcome claims that session's requests."""

    protocol: int = PROTOCOL_VERSION
    fingerprint: str
    cut: int | None = None
    codec: str
    resume_token: str | None = None


class Welcome(Control):
    """Server → client: what was chosen, and the limits. ``resume_token`` is a secret of this
    session. ``max_frame_tokens`` bounds the tokens of one data frame."""

    protocol: int = PROTOCOL_VERSION
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
    resume_timeout_s: float


class Open(Control):
    """Client → server: start a request, or take it up again after a cut of the line.

    ``request_id`` is the client's, unique in its session. ``num_prompt`` positions come before the
    first sampled token; ``outputs`` are the tokens already sampled, whose positions follow."""

    request_id: int
    num_prompt: int
    sampling: SamplingParams
    outputs: list[int] = []


class Opened(Control):
    """Server → client: ``next_position`` is the first position whose packet is wanted (above 0
    when the server still holds the request), ``credit`` the position up to which packets may be
    sent."""

    request_id: int
    next_position: int
    credit: int


class Credit(Control):
    """Server → client: positions below ``credit`` may now be sent. It never falls."""

    request_id: int
    credit: int


class Want(Control):
    """Server → client: a frame left a gap; send again from ``next_position`` on."""

    request_id: int
    next_position: int


class Alternative(msgspec.Struct, frozen=True, array_like=True):
    token_id: int
    logprob: float


class Token(Control):
    """Server → client: the token at ``position``. ``finish_reason`` ends the request.
    ``server_us``: busy time of the server for this request since its last Token, microseconds."""

    request_id: int
    position: int
    token_id: int
    logprob: float | None = None
    top: list[Alternative] = []
    finish_reason: str | None = None
    server_us: int = 0


class Cancel(Control):
    """Client → server: forget the request. Nothing more is sent about it."""

    request_id: int


class Error(Control):
    """Either way. ``code`` is for programs, ``message`` for people. With a ``request_id`` it ends
    that request alone, without one the connection. ``retry_after_s``: another try may succeed."""

    code: str
    message: str
    request_id: int | None = None
    retry_after_s: float | None = None


class Drain(Control):
    """Server → client: the server is going away; live requests may finish within ``seconds``, new
    ones should go elsewhere."""

    seconds: float


class Bye(Control):
    """Either way: the sender will close, and keeps nothing for a resume."""
