"""What every request for the model passes first: keys, the size of its body, the server's mood."""

from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sliceserve.api.errors import ApiError
from sliceserve.api.lifecycle import Lifecycle
from sliceserve.api.limits import Account, Accounts

MAX_BODY_BYTES = 16 << 20
# vLLM's endpoints that are not under /v1, but have as much work to do; and who uses the server how
# much is not for everybody.
_GUARDED = ("/tokenize", "/detokenize", "/tokenizer_info", "/dashboard/events")


class Gate:
    """ASGI middleware. Refuses requests under /v1 and the like before anything else looks at them,
    WebSockets included (they get an HTTP answer instead of an upgrade), and counts those that are
    live.

    ``accounts`` know the keys; `account_of` tells a route whose request it has. WebSockets that a
    web page opens must come from one of ``origins``: nothing else keeps a stranger's page from a
    server on its reader's machine. While draining, questions (GET) are still answered.
    """

    def __init__(
        self,
        app: ASGIApp,
        accounts: Accounts,
        lifecycle: Lifecycle,
        origins: Collection[str] = (),
    ) -> None:
        self._app = app
        self._origins = origins
        self._accounts = accounts
        self._lifecycle = lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or not _is_guarded(scope["path"]):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        is_work = scope["type"] == "http" and scope["method"] == "POST"
        try:
            if scope["type"] == "websocket":
                self._expect_origin(headers.get("origin"))
            account = self._accounts.of_key(_key_in(headers))
            # A copy: servers may share one state between all requests.
            scope["state"] = {**scope.get("state", {}), "account": account}
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
            await self._app(scope, _measured(receive), _telling(account, send))

    def _expect_origin(self, origin: str | None) -> None:
        """Raise ApiError 403 for a page from elsewhere. Programs name no origin."""
        if origin is not None and not {origin, "*"} & set(self._origins):
            raise ApiError(
                403,
                f"pages from {origin} may not connect here; the server's allowed_origins say who "
                "may",
                "origin_not_allowed",
            )


def account_of(connection: HTTPConnection) -> Account:
    """Of the tenant whose key let this request or WebSocket through the gate."""
    account: Account = connection.state.account
    return account


def _is_guarded(path: str) -> bool:
    return path.startswith("/v1/") or path in _GUARDED


def _key_in(headers: Headers) -> str | None:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() or None if scheme.lower() == "bearer" else None


def _telling(account: Account, send: Send) -> Send:
    """Say in the answer's headers what is left of the tenant's limits."""

    async def telling(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in account.headers().items():
                headers[name] = value
        await send(message)

    return telling


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
