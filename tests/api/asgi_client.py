"""The app without a socket."""

import contextlib

import httpx

from sliceserve.api.app import create_app


@contextlib.asynccontextmanager
async def asgi_client(backend, **settings):
    transport = httpx.ASGITransport(create_app(backend, **settings), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://tiny") as client:
        yield client
