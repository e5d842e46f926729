"""The app without a socket."""

import contextlib

import httpx

from sliceserve.api.app import create_app
from sliceserve.api.limits import Accounts
from sliceserve.configs import Keyring, TenantConfig


def accounts_of(api_keys=None, tenants=()):
    """``api_keys`` are keys and the names of their tenants; ``tenants`` come with their own."""
    names = dict.fromkeys((api_keys or {}).values())
    keys = {name: tuple(key for key, n in api_keys.items() if n == name) for name in names}
    made = [TenantConfig(name=name, api_keys=keys[name]) for name in names]
    return Accounts(Keyring(tenants=(*made, *tenants)))


@contextlib.asynccontextmanager
async def asgi_client(backend, api_keys=None, tenants=(), **settings):
    app = create_app(backend, accounts=accounts_of(api_keys, tenants), **settings)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://tiny") as client:
        yield client
