"""What spans say, in the words of OpenTelemetry's conventions for generative AI."""

from sliceserve.configs import SamplingParams
from sliceserve.tracing.spans import Attributes


def request_attributes(operation: str, model: str, sampling: SamplingParams) -> Attributes:
    """What was asked for. ``operation`` is "chat" or "text_completion"."""
    attributes: dict[str, str | int | float | bool | list[str]] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "sliceserve",
        "gen_ai.request.model": model,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
    }
    if sampling.seed is not None:
        attributes["gen_ai.request.seed"] = sampling.seed
    return attributes


def usage_attributes(num_prompt: int, num_tokens: int, num_cached: int) -> Attributes:
    """What it came to, in tokens."""
    return {
        "gen_ai.usage.input_tokens": num_prompt,
        "gen_ai.usage.output_tokens": num_tokens,
        "gen_ai.usage.cache_read.input_tokens": num_cached,
    }
