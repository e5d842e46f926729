"""What the generating endpoints accept, one module an endpoint."""

from sliceserve.api.protocol.chat import ChatCompletionRequest
from sliceserve.api.protocol.completions import CompletionRequest
from sliceserve.api.protocol.generation import GenerationRequest
from sliceserve.api.protocol.responses import ResponsesRequest
from sliceserve.api.protocol.tokenization import DetokenizeRequest, TokenizeRequest

__all__ = [
    "ChatCompletionRequest",
    "CompletionRequest",
    "DetokenizeRequest",
    "GenerationRequest",
    "ResponsesRequest",
    "TokenizeRequest",
]
