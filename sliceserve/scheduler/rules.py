"""What a request must keep to be served at all, whoever else is there."""

from collections.abc import Collection, Container

from sliceserve.scheduler.blocks import BlockManager
from sliceserve.scheduler.errors import RequestRefused
from sliceserve.scheduler.request import Request


class Rules:
    """What is expected of requests raises RequestRefused with a sentence for the client."""

    def __init__(
        self, blocks: BlockManager, max_model_len: int, eos_token_ids: Collection[int]
    ) -> None:
        self._blocks = blocks
        self._max_model_len = max_model_len
        self._eos_token_ids = frozenset(eos_token_ids)

    def max_len(self, entry_layer: int) -> int:
        """The most tokens, prompt and answer together, of a request that enters there."""
        return min(self._max_model_len, self._blocks.capacity(entry_layer))

    def set_end(self, request: Request) -> None:
        """Say where the request ends."""
        sampling = request.sampling
        request.max_len = self.max_len(request.entry_layer)
        if request.is_head:
            return
        request.max_len = min(request.max_len, request.num_prompt + sampling.max_tokens)
        # A guide lets an answer that shall ignore its end come there only where it must.
        ends = self._eos_token_ids if sampling.guide or not sampling.ignore_eos else frozenset()
        stops = sampling.stop_token_ids
        request.end_token_ids = ends.union(stops) if stops else ends

    def expect_servable(self, request: Request, live: Container[str]) -> None:
        """The request is new: its id is none of ``live``, and it could be served alone."""
        if request.request_id in live:
            raise RequestRefused(
                "invalid_request", f"request {request.request_id} is live; choose another id"
            )
        first, stop = self._blocks.segments[0].first, self._blocks.segments[-1].stop
        if not first <= request.entry_layer < stop:
            raise RequestRefused(
                "invalid_request",
                f"entry layer {request.entry_layer} is outside layers [{first}, {stop}) of this "
                "engine",
            )
        if request.num_prompt < 1:
            raise RequestRefused("invalid_request", "a prompt must have at least one token")
        num_inputs = request.num_tokens if request.entry_layer == 0 else 0
        if request.num_known != num_inputs:
            raise RequestRefused(
                "invalid_request",
                f"expected {num_inputs} tokens of prompt and outputs for a request that enters at "
                f"layer {request.entry_layer}, got {request.num_known}",
            )
        if not request.is_head and request.sampling.needs_prompt:
            self._expect_prompt(request)
        if not request.is_head and len(request.outputs) >= request.sampling.max_tokens:
            raise RequestRefused(
                "invalid_request",
                f"{len(request.outputs)} tokens are given and max_tokens is "
                f"{request.sampling.max_tokens}: there is nothing to generate",
            )
        # A head computes every position; elsewhere one more token must have room.
        max_len = self.max_len(request.entry_layer) - (not request.is_head)
        if request.num_tokens > max_len:
            raise RequestRefused(
                "context_length_exceeded",
                f"the request begins with {request.num_tokens} tokens and at most {max_len} fit: "
                f"the context limit is {self._max_model_len} tokens, the KV cache holds "
                f"{self._blocks.capacity(request.entry_layer)}",
            )

    def _expect_prompt(self, request: Request) -> None:
        if len(request.prompt) != request.num_prompt:
            raise RequestRefused(
                "invalid_request",
                f"repetition_penalty and prompt_logprobs need the token ids of all "
                f"{request.num_prompt} positions of the prompt, got {len(request.prompt)}",
            )

    def expect_knowable(self, request: Request, num_known: int) -> None:
        """Inputs of the positions below ``num_known`` can be known by now."""
        if request.is_head:
            max_len = self.max_len(request.entry_layer)
            if num_known > max_len:
                raise RequestRefused(
                    "context_length_exceeded",
                    f"position {num_known - 1} is past the limit of {max_len} tokens",
                )
        elif num_known > request.num_tokens:
            raise RequestRefused(
                "invalid_request",
                f"an input for position {num_known - 1} came before its token was chosen; the "
                f"last chosen one is at {request.num_tokens - 1}",
            )
