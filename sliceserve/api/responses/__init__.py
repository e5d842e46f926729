"""POST /v1/responses: OpenAI's Responses API, without its storage."""

from sliceserve.api.responses.create import create_response

__all__ = ["create_response"]
