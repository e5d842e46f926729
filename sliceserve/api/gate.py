"""What every request for the model passes first: keys, the size of its body, the server's mood."""

import hmac
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sliceserve.api.errors import ApiError
from sliceserve.api.lifecycle import Lifecycle
from sliceserve.configs import DEFAULT_TENANT

MAX_BODY_BYTES = 16 << 20
# vLLM's endpoints that are not under /v1, but have as much work to do.
_GUARDED = ("/tokenize", "/detokenize", "/tokenizer_info")


class Gate:
    """ASGI middleware. Refuses requests under /v1 and for the tokenizer before anything else looks
    at them, WebSockets included (they get an HTTP answer instead of an upgrade), and counts those
    that are live.

    ``api_keys`` are keys and their tenants; `tenant_of` tells a route whose request it has. With no
    keys everybody may enter. While draining, questions (GET) are still answered.
    """

    def __init__(self, app: ASGIApp, api_keys: Mapping[str, str], lifecycle: Lifecycle) -> None:
        self._app = app
        self._keys = [(key.encode(), tenant) for key, tenant in api_keys.items()]
        self._lifecycle = lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or not _is_guarded(scope["path"]):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        is_work = scope["type"] == "http" and scope["method"] == "POST"
        try:
            # A copy: servers may share one state between all requests.
            scope["state"] = {**scope.get("state", {}), "tenant": self._tenant(headers)}
            if is_work or scope["type"] == "websocket":
                self._lifecycle.expect_serving()
            if is_work:
                _expect_body_size(int(headers.get("content-length", "0")))
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        if not is_work:
            await self._app(scope, receive, send)
            return
        with self._lifecycle.work():
            await self._app(scope, _measured(receive), send)

    def _tenant(self, headers: Headers) -> str:
        """Whose key this is. Raises ApiError 401 for none that is known."""
        if not self._keys:
            return DEFAULT_TENANT
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = key.strip().encode("latin-1")
        # Every key is compared, so that the time taken says nothing about which one came close.
        matches = [tenant for known, tenant in self._keys if hmac.compare_digest(given, known)]
        if scheme.lower() != "bearer" or not matches:
            problem = "Incorrect API key provided" if given else "You didn't provide an API key"
            raise ApiError(
                401,
                f"{problem}; send it as 'Authorization: Bearer KEY'",
                "invalid_api_key",
            )
        return matches[0]


def _is_guarded(path: str) -> bool:
    return path.startswith("/v1/") or path in _GUARDED


def tenant_of(connection: HTTPConnection) -> str:
    """The tenant whose key let this request or WebSocket through the gate."""
    tenant: str = connection.state.tenant
    return tenant


def _measured(receive: Receive) -> Receive:
    """Stop a body that does not say its length (chunked) once it is too large."""
    num_bytes = 0

    async def measured() -> Message:
        nonlocal num_bytes
        message = await receive()
        num_bytes += len(message.get("body", b""))
        _expect_body_size(num_bytes)
        return message

    return measured


def _expect_body_size(num_bytes: int) -> None:
    if num_bytes > MAX_BODY_BYTES:
        raise ApiError(413, f"the body is larger than {MAX_BODY_BYTES} bytes", "request_too_large")
