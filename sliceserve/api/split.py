"""WebSocket /v1/split: where split clients come in."""

import asyncio
import contextlib
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from sliceserve.api.errors import ApiError, invalid
from sliceserve.api.gate import account_of
from sliceserve.api.lifecycle import Lifecycle
from sliceserve.api.limits import Account
from sliceserve.api.metrics import Metrics
from sliceserve.api.replies import SplitInfo
from sliceserve.api.split_session import Ending, Session, in_wire_words, receive, refuse
from sliceserve.engine.client import EngineClient
from sliceserve.engine.messages import EARLY_TOKENS, EngineInfo
from sliceserve.engine.profiles import profile_store
from sliceserve.tracing import Tracing
from sliceserve.transport.frames import MAX_FRAME_BYTES, MAX_FRAME_TOKENS, ProtocolError
from sliceserve.transport.link import CloseCode
from sliceserve.transport.messages import (
    EARLY_VERSION,
    OLDEST_VERSION,
    PROTOCOL_VERSION,
    SUBPROTOCOL,
    Drain,
    Error,
    Hello,
    Welcome,
)

_RESUME_TOKEN_BYTES = 32
_RESUME_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitLimits:
    """Bounds of one connection. ``max_requests`` live at once; ``max_waiting`` messages that a
    client may leave unread; ``resume_timeout_s``: how long the engine keeps what a lost connection
    has left behind."""

    max_requests: int = 256
    max_frame_tokens: int = MAX_FRAME_TOKENS
    max_frame_bytes: int = MAX_FRAME_BYTES
    max_waiting: int = 4096
    hello_timeout_s: float = 10.0
    resume_timeout_s: float = 60.0


class SplitEndpoint:
    """All split connections of one engine.

    Nothing of a connection is kept here once it is gone: the engine holds the requests, under ids
    that begin with the session's secret resume token.
    """

    def __init__(
        self,
        model: str,
        engine: EngineClient,
        lifecycle: Lifecycle,
        metrics: Metrics,
        limits: SplitLimits | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._tracing = tracing
        self._model = model
        self._engine = engine
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._limits = limits or SplitLimits()
        self._profiles = profile_store()
        self._sessions: dict[str, Session] = {}
        self._places: dict[str, contextlib.ExitStack] = {}
        self._running: set[asyncio.Task[None]] = set()
        for cut in engine.info.cuts:
            # None is open yet, which is something to know.
            metrics.split_sessions.labels(cut).set(0)
        lifecycle.on_drain(self._announce_drain)
        lifecycle.on_end(self._leave)

    def describe(self, account: Account) -> SplitInfo:
        """What a client may want to know before it loads a head (GET /v1/split/info)."""
        info = describe(self._model, self._engine.info)
        return msgspec.structs.replace(
            info,
            cuts=list(filter(account.may_enter, info.cuts)),
            thin=info.thin and account.may_enter(0),
        )

    def profile_path(self, digest: str) -> Path:
        """The file of a profile that a Welcome may name. Raises ApiError for any other."""
        if digest in (profile.digest for profile in self._engine.info.profiles):
            path = self._profiles.path(digest)
            if path.is_file():
                return path
        raise ApiError(
            404,
            f"there is no profile {digest[:80]!r} here; /v1/split/info lists those there are",
            "profile_not_found",
        )

    async def serve(self, websocket: WebSocket) -> None:
        """One connection, from its upgrade to its end."""
        if SUBPROTOCOL not in websocket.scope["subprotocols"]:
            error = invalid(f"/v1/split speaks the WebSocket subprotocol {SUBPROTOCOL} only")
            await websocket.send_denial_response(error.response())
            return
        await websocket.accept(SUBPROTOCOL)
        account = account_of(websocket)
        try:
            welcome = await self._greet(websocket, account)
            place = self._place(welcome.resume_token, account)
        except WebSocketDisconnect:
            return
        except ProtocolError as refused:
            words = Error(code=refused.code, message=refused.message)
            await refuse(websocket, Ending(CloseCode.PROTOCOL_ERROR, words), self._metrics)
            return
        except ApiError as refused:
            words = in_wire_words(refused)
            await refuse(websocket, Ending(CloseCode.POLICY_VIOLATION, words), self._metrics)
            return
        with place:
            await self._host(websocket, welcome)

    def _place(self, token: str, account: Account) -> contextlib.ExitStack:
        """A place among the tenant's sessions, to be left by closing it. Raises ApiError if there
        is none."""
        if (older := self._places.get(token)) is not None:
            # Its line is dead, and nobody has noticed yet.
            place = older.pop_all()
        else:
            place = contextlib.ExitStack()
            place.enter_context(account.session())
            place.callback(self._places.pop, token)
        self._places[token] = place
        return place

    async def _host(self, websocket: WebSocket, welcome: Welcome) -> None:
        session = Session(
            websocket,
            welcome,
            self._engine,
            self._lifecycle,
            self._metrics,
            self._limits.max_waiting,
            self._tracing,
        )
        running = asyncio.create_task(self._run(session, welcome.resume_token))
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        await running

    async def _run(self, session: Session, token: str) -> None:
        older = self._sessions.get(token)
        if older is not None:
            # Its line is dead, and nobody has noticed yet.
            older.supersede()
        self._sessions[token] = session
        num_open = self._metrics.split_sessions.labels(session.cut)
        num_open.inc()
        try:
            await session.run()
        finally:
            num_open.dec()
            if self._sessions.get(token) is session:
                del self._sessions[token]

    async def _greet(self, websocket: WebSocket, account: Account) -> Welcome:
        limits = self._limits
        try:
            hello = await asyncio.wait_for(
                receive(websocket, limits.max_frame_bytes, limits.max_frame_tokens, self._metrics),
                limits.hello_timeout_s,
            )
        except asyncio.TimeoutError as error:
            raise ProtocolError(
                "protocol_error", f"no Hello came within {limits.hello_timeout_s:g} s"
            ) from error
        if not isinstance(hello, Hello):
            raise ProtocolError(
                "protocol_error", f"the first message must be Hello, got {type(hello).__name__}"
            )
        if self._lifecycle.draining:
            raise ProtocolError("draining", "this server is shutting down; connect to another one")
        info = self._engine.info
        _expect_same_model(hello, info)
        if hello.resume_token is not None and not _RESUME_TOKEN.fullmatch(hello.resume_token):
            raise ProtocolError(
                "invalid_resume_token", "a resume token must be one that a Welcome has given"
            )
        account.expect_model(self._model)
        cut = _choose_cut(hello, info, account)
        return Welcome(
            protocol=hello.protocol,
            cut=cut,
            codec=hello.codec,
            profile=_choose_profile(hello, cut, info),
            model=self._model,
            num_layers=info.num_layers,
            max_model_len=info.max_model_len,
            max_requests=limits.max_requests,
            max_frame_tokens=limits.max_frame_tokens,
            max_frame_bytes=limits.max_frame_bytes,
            resume_token=hello.resume_token or secrets.token_urlsafe(_RESUME_TOKEN_BYTES),
            resume_timeout_s=limits.resume_timeout_s,
            block_size=0 if hello.protocol == OLDEST_VERSION else info.block_size,
            early_tokens=0 if hello.protocol < EARLY_VERSION else EARLY_TOKENS,
        )

    def _announce_drain(self, seconds: float) -> None:
        for session in self._sessions.values():
            session.tell(Drain(seconds=seconds))

    async def _leave(self) -> None:
        for session in self._sessions.values():
            session.leave()
        if self._running:
            await asyncio.wait(self._running)


def describe(model: str, info: EngineInfo) -> SplitInfo:
    """What an engine offers, under the name ``model``."""
    return SplitInfo(
        model=model,
        fingerprint=info.fingerprint,
        protocol=PROTOCOL_VERSION,
        num_layers=info.num_layers,
        cuts=info.cuts,
        codecs=info.codecs,
        profiles=info.profiles,
        thin=info.thin,
        max_model_len=info.max_model_len,
    )


def _expect_same_model(hello: Hello, info: EngineInfo) -> None:
    if not OLDEST_VERSION <= hello.protocol <= PROTOCOL_VERSION:
        raise ProtocolError(
            "unsupported_protocol",
            f"this server speaks versions {OLDEST_VERSION} to {PROTOCOL_VERSION} of the protocol, "
            f"the client {hello.protocol}; install the same release on both sides",
        )
    if hello.fingerprint != info.fingerprint:
        raise ProtocolError(
            "fingerprint_mismatch",
            f"the server runs {info.model} with fingerprint {info.fingerprint[:12]}, the client's "
            f"model has {hello.fingerprint[:12]}: their weights or configurations differ; give "
            "both sides the same model",
        )


def _choose_cut(hello: Hello, info: EngineInfo, account: Account) -> int:
    """Raises ApiError for one that the tenant may not have."""
    offered = ", ".join(map(str, info.cuts)) or "none"
    if not info.cuts or (hello.cut is not None and hello.cut not in info.cuts):
        wanted = "any layer" if hello.cut is None else f"layer {hello.cut}"
        raise ProtocolError(
            "cut_not_offered", f"rows cannot enter at {wanted}; the cuts offered are {offered}"
        )
    if hello.cut is None:
        allowed = [cut for cut in info.cuts if account.may_enter(cut)] or info.cuts
        cut = allowed[len(allowed) // 2]
    else:
        cut = hello.cut
    account.expect_cut(cut)
    return cut


def _choose_profile(hello: Hello, cut: int, info: EngineInfo) -> str | None:
    """The digest of the profile for the client's codec, None for one that has none."""
    if hello.codec not in info.codecs:
        raise ProtocolError(
            "unsupported_codec",
            f"codec {hello.codec!r} is not known here; known are {', '.join(info.codecs)}",
        )
    if hello.codec not in (profile.codec for profile in info.profiles):
        return None
    profile = info.profile(hello.codec, cut, hello.hide_tokens)
    if profile is None:
        what = "that hides tokens " if hello.hide_tokens else ""
        raise ProtocolError(
            "unsupported_codec",
            f"there is no profile {what}of codec {hello.codec!r} for cut {cut} here; choose "
            "another codec or cut",
        )
    return profile.digest
