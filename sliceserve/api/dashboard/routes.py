"""GET /dashboard and what belongs to it.

The page has no figures in it, so everybody may have it; /dashboard/events, where they come from,
asks for a key where the server has keys (`Gate` sees to that), which the page then asks for.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException
from starlette.responses import FileResponse, RedirectResponse, Response

from sliceserve import __version__
from sliceserve.api.backend import Backend
from sliceserve.api.dashboard.readings import Readings
from sliceserve.api.dashboard.sampler import HISTORY_S, INTERVAL_S, Sampler
from sliceserve.api.event_stream import EventStream, encode_event
from sliceserve.api.lifecycle import Lifecycle

_PAGE = Path(__file__).parent / "page"
_MEDIA_TYPES = {
    "index.html": "text/html",
    "style.css": "text/css",
    "icon.svg": "image/svg+xml",
    "app.js": "text/javascript",
    "cards.js": "text/javascript",
    "charts.js": "text/javascript",
    "dom.js": "text/javascript",
    "format.js": "text/javascript",
    "panels.js": "text/javascript",
    "stream.js": "text/javascript",
    "theme.js": "text/javascript",
}
_HEADERS = {
    # Everything comes from here, and nothing that a figure brings can run.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # The page and the events of another release do not go together.
    "Cache-Control": "no-cache",
}


def add_dashboard_routes(
    app: FastAPI,
    backend: Backend,
    lifecycle: Lifecycle,
    read: Callable[[], Awaitable[Readings | None]],
) -> None:
    """``read`` as for a `Sampler`."""
    sampler = Sampler(read, lambda: lifecycle.draining)
    lifecycle.on_end(sampler.close)
    about = encode_event(_describe(backend), "about")

    @app.get("/dashboard", include_in_schema=False)
    async def page() -> Response:
        return _file("index.html")

    @app.get("/dashboard/", include_in_schema=False)
    async def without_slash() -> Response:
        # Relative, for a proxy may serve this under another path.
        return RedirectResponse("../dashboard")

    @app.get("/dashboard/events", include_in_schema=False)
    async def events() -> Response:
        samples = sampler.samples()

        async def stream() -> AsyncIterator[bytes]:
            yield about
            async for sample in samples:
                yield encode_event(sample, "sample")
            yield encode_event({}, "end")

        return EventStream(stream(), samples)

    @app.get("/dashboard/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        return _file(name)


def _file(name: str) -> Response:
    if name not in _MEDIA_TYPES:
        raise HTTPException(404)
    return FileResponse(_PAGE / name, media_type=_MEDIA_TYPES[name], headers=_HEADERS)


def _describe(backend: Backend) -> dict[str, Any]:
    """What stays the same while the server lives."""
    about: dict[str, Any] = {
        "model": backend.models[0],
        "version": __version__,
        "role": "gateway" if backend.engine is None else "server",
        "interval_s": INTERVAL_S,
        "history_s": HISTORY_S,
    }
    if backend.engine is not None:
        info = backend.engine.info
        about |= {
            "num_layers": info.num_layers,
            "first_layer": info.first_layer,
            "cuts": info.cuts,
            "thin": info.thin,
            "device": info.device,
            "dtype": info.dtype,
        }
    return about
