"""Every error of the HTTP API, in OpenAI's shape: {"error": {message, type, param, code}}."""

import logging
import math
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from sliceserve.engine.client import EngineDead
from sliceserve.engine.generation import GenerationError
from sliceserve.models.errors import ModelError

logger = logging.getLogger(__name__)

# Statuses of a request that failed in an engine, here or at the far end of a split client.
_STATUS_OF_CODE = {
    "invalid_request": 400,
    "context_length_exceeded": 400,
    "overloaded": 429,
    "rate_limit_exceeded": 429,
    "too_many_sessions": 429,
    "model_not_allowed": 403,
    "cut_not_allowed": 403,
    "draining": 503,
    "server_unreachable": 503,
    "closed": 503,
    "timeout": 504,
}
_TYPE_OF_STATUS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}
_RETRY_AFTER_S = 1.0


class ApiError(HTTPException):
    """An answer other than the one hoped for. ``code`` is for programs; ``param`` names the field
    at fault; ``retry_after_s`` is sent as a whole number of seconds, rounded up."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        headers: dict[str, str] = {}
        if retry_after_s is None and status in (429, 503):
            retry_after_s = _RETRY_AFTER_S
        if retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        super().__init__(status, message, headers)
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, Any]:
        fallback = "invalid_request_error" if self.status_code < 500 else "server_error"
        return {
            "error": {
                "message": self.detail,
                "type": _TYPE_OF_STATUS.get(self.status_code, fallback),
                "param": self.param,
                "code": self.code,
            }
        }

    @property
    def may_retry(self) -> bool:
        """Whether it was for want of room, so that the same may succeed later."""
        return self.status_code in (429, 503)

    def response(self) -> JSONResponse:
        return ErrorResponse(self)


class ErrorResponse(JSONResponse):
    """Counts itself in the metrics of the app that sends it."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.body, error.status_code, error.headers)
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The client of a 499 hears nothing of it.
        if "app" in scope and self.status_code != 499:
            path = "split" if scope["type"] == "websocket" else "thin"
            metrics = scope["app"].state.metrics
            metrics.count_error(path, self._error.code, self._error.may_retry)
        await super().__call__(scope, receive, send)


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """The request is at fault."""
    return ApiError(400, message, code, param)


def as_api_error(error: Exception) -> ApiError:
    """What to tell the caller about an error that ended a generation. Logs those that nobody
    foresaw."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, GenerationError):
        status = _STATUS_OF_CODE.get(error.code, 500)
        return ApiError(status, str(error), error.code, retry_after_s=error.retry_after_s)
    if isinstance(error, EngineDead):
        return ApiError(503, f"the engine has stopped: {error}", "engine_dead")
    if isinstance(error, ModelError):
        return invalid(str(error))
    logger.error("unexpected error while generating", exc_info=error)
    return _internal_error()


def install_error_handlers(app: FastAPI) -> None:
    """Let ``app`` answer everything that goes wrong in OpenAI's shape."""

    async def on_http_error(request: Request, error: HTTPException) -> JSONResponse:
        return _from_http_error(request, error).response()

    async def on_validation_error(_: Request, error: RequestValidationError) -> JSONResponse:
        return _from_validation_error(error.errors()).response()

    # The server around the app logs the traceback.
    async def on_unexpected_error(_: Request, __: Exception) -> JSONResponse:
        return _internal_error().response()

    app.add_exception_handler(HTTPException, on_http_error)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, on_validation_error)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, on_unexpected_error)


def _internal_error() -> ApiError:
    return ApiError(500, "the server failed; its log says why", "internal_error")


def _from_http_error(request: Request, error: HTTPException) -> ApiError:
    if isinstance(error, ApiError):
        return error
    where = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        return ApiError(404, f"there is no {where}; /docs lists what there is", "not_found")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        refusal = ApiError(405, f"{where} is not allowed; use {allowed}", "method_not_allowed")
        refusal.headers = {**(refusal.headers or {}), "Allow": allowed}
        return refusal
    return ApiError(error.status_code, str(error.detail), "invalid_request")


def _from_validation_error(errors: Sequence[dict[str, Any]]) -> ApiError:
    """Tell the first problem, as OpenAI words it."""
    error = errors[0]
    kind, location = error["type"], error["loc"][1:]
    param = _param(location)
    if kind == "json_invalid":
        reason = error.get("ctx", {}).get("error", error["msg"])
        return invalid(f"the body is not valid JSON: {reason}", code="invalid_json")
    if kind == "value_error" and not location:
        return invalid(error["msg"].removeprefix("Value error, "))
    if not location:
        return invalid(
            "the body must be a JSON object, sent with Content-Type: application/json",
            code="invalid_json",
        )
    if kind == "extra_forbidden":
        return invalid(f"Unknown parameter: '{param}'.", param, "unknown_parameter")
    if kind == "missing":
        return invalid(
            f"Missing required parameter: '{param}'.", param, "missing_required_parameter"
        )
    if kind == "unsupported_parameter":
        return invalid(error["msg"], param, kind)
    reason = error["msg"].removeprefix("Value error, ")
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    return invalid(f"Invalid '{param}': {reason}.", param, code)


def _param(location: Sequence[str | int]) -> str:
    """("messages", 0, "content") → "messages[0].content"."""
    path = ""
    for part in location:
        # A branch of a union, which is no field.
        if isinstance(part, str) and part.startswith("<"):
            continue
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path
