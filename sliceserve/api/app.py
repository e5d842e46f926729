"""The HTTP application: the same for a server and for a gateway on the device."""

import asyncio

from fastapi import FastAPI, Request, WebSocket
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import FileResponse, JSONResponse, Response

from sliceserve import __version__
from sliceserve.api.backend import Backend
from sliceserve.api.chat import create_chat_completion
from sliceserve.api.completions import create_completion
from sliceserve.api.dashboard import Readings, add_dashboard_routes
from sliceserve.api.errors import install_error_handlers
from sliceserve.api.gate import Gate, account_of
from sliceserve.api.lifecycle import Lifecycle
from sliceserve.api.limits import Accounts
from sliceserve.api.metrics import Metrics
from sliceserve.api.models import ModelCards
from sliceserve.api.openapi import describe
from sliceserve.api.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    ResponsesRequest,
    TokenizeRequest,
)
from sliceserve.api.replies import Version, as_json
from sliceserve.api.responses import create_response
from sliceserve.api.split import SplitEndpoint, SplitLimits
from sliceserve.api.tokenization import detokenize, tokenize
from sliceserve.client.stats import SessionStats
from sliceserve.configs import HttpConfig, Keyring
from sliceserve.engine.client import EngineDead
from sliceserve.engine.messages import EngineStats

# An engine answers between two steps; one that takes longer is busy, not dead.
_STATS_TIMEOUT_S = 2.0
# A profile is named by its content. Only who may connect may have it: caches on the way may not.
_FOR_EVER = {"Cache-Control": "private, max-age=31536000, immutable"}


def create_app(
    backend: Backend,
    *,
    http: HttpConfig | None = None,
    accounts: Accounts | None = None,
    lifecycle: Lifecycle | None = None,
    split_limits: SplitLimits | None = None,
) -> FastAPI:
    """Routes over ``backend``. ``accounts`` are who may enter; without them, everybody. Of ``http``
    the origins of web pages matter here, whether there is a dashboard, and how many tenants
    /metrics tells apart. ``lifecycle`` is how whoever runs the app drains it.

    Call it on the event loop that will run the app.
    """
    http = http or HttpConfig()
    lifecycle = lifecycle or Lifecycle()
    accounts = accounts or Accounts(Keyring())
    tenants = accounts.names[: http.max_metric_tenants]
    metrics = Metrics(tenants, serves_split=backend.engine is not None)
    app = FastAPI(title="SliceServe", version=__version__, redirect_slashes=False)
    # Where `ErrorResponse` finds them.
    app.state.metrics = metrics
    install_error_handlers(app)
    app.add_middleware(Gate, accounts=accounts, lifecycle=lifecycle, origins=http.allowed_origins)
    # Around the gate: browsers ask without a key what they may send, and read refusals too.
    if http.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=http.allowed_origins,
            allow_credentials=http.allow_credentials,
            allow_methods=http.allowed_methods,
            allow_headers=http.allowed_headers,
        )
    _add_openai_routes(app, backend, metrics)
    _add_tokenizer_routes(app, backend)
    _add_status_routes(app, backend, lifecycle, metrics, http.dashboard)
    app.openapi = describe(app, backend, accounts)  # type: ignore[method-assign]
    if backend.engine is not None:
        split = SplitEndpoint(
            backend.models[0], backend.engine, lifecycle, metrics, split_limits, backend.tracing
        )
        _add_split_routes(app, split)
    return app


def _add_openai_routes(app: FastAPI, backend: Backend, metrics: Metrics) -> None:
    cards = ModelCards(backend)

    @app.get("/v1/models", response_model=None)
    async def list_models(http: Request) -> Response:
        return as_json(cards.all(account_of(http)))

    # Hub names have a slash in them.
    @app.get("/v1/models/{name:path}", response_model=None)
    async def retrieve_model(http: Request, name: str) -> Response:
        return as_json(cards.one(name, account_of(http)))

    @app.post("/v1/completions", response_model=None)
    async def completions(http: Request, request: CompletionRequest) -> Response:
        return await create_completion(http, request, backend, metrics)

    @app.post("/v1/chat/completions", response_model=None)
    async def chat_completions(http: Request, request: ChatCompletionRequest) -> Response:
        return await create_chat_completion(http, request, backend, metrics)

    @app.post("/v1/responses", response_model=None)
    async def responses(http: Request, request: ResponsesRequest) -> Response:
        return await create_response(http, request, backend, metrics)


def _add_tokenizer_routes(app: FastAPI, backend: Backend) -> None:
    @app.post("/tokenize", response_model=None)
    async def tokenize_prompt(http: Request, request: TokenizeRequest) -> Response:
        return await tokenize(http, request, backend)

    @app.post("/detokenize", response_model=None)
    async def detokenize_tokens(http: Request, request: DetokenizeRequest) -> Response:
        return await detokenize(http, request, backend)

    @app.get("/tokenizer_info", response_model=None)
    async def tokenizer_info() -> JSONResponse:
        return JSONResponse(backend.tokenizer.describe())


def _add_status_routes(
    app: FastAPI, backend: Backend, lifecycle: Lifecycle, metrics: Metrics, dashboard: bool
) -> None:
    async def stats() -> EngineStats | None:
        """None from an engine that is busy. Raises EngineDead."""
        try:
            return await asyncio.wait_for(backend.stats(), _STATS_TIMEOUT_S)
        except asyncio.TimeoutError:
            return None

    @app.get("/health")
    async def health() -> JSONResponse:
        if lifecycle.draining:
            return JSONResponse({"status": "draining"}, 503)
        try:
            await stats()
        except EngineDead as error:
            return JSONResponse({"status": "dead", "message": str(error)}, 503)
        return JSONResponse({"status": "ok"})

    @app.get("/version", response_model=None)
    async def version() -> Response:
        return as_json(Version(__version__))

    async def observe() -> tuple[EngineStats | None, SessionStats | None]:
        session = None if backend.session is None else backend.session()
        try:
            return await stats(), session
        except EngineDead:
            # What was counted here is still true.
            return None, session

    @app.get("/metrics", response_model=None)
    async def expose_metrics() -> Response:
        metrics.count_tasks()
        return Response(metrics.expose(*await observe()), media_type=CONTENT_TYPE_LATEST)

    async def read_metrics() -> Readings | None:
        now, session = await observe()
        return None if now is None else Readings(metrics.collect(now, session))

    if dashboard:
        add_dashboard_routes(app, backend, lifecycle, read_metrics)


def _add_split_routes(app: FastAPI, split: SplitEndpoint) -> None:
    @app.get("/v1/split/info", response_model=None)
    async def split_info(http: Request) -> Response:
        return as_json(split.describe(account_of(http)))

    @app.get("/v1/split/profiles/{digest}", response_model=None)
    async def split_profile(digest: str) -> Response:
        path = split.profile_path(digest)
        return FileResponse(path, headers=_FOR_EVER, media_type="application/octet-stream")

    @app.websocket("/v1/split")
    async def connect(websocket: WebSocket) -> None:
        await split.serve(websocket)
