"""What an engine asks of a request before it begins."""

import secrets
from collections.abc import Iterable

from msgspec import structs

from sliceserve.configs import SamplingParams
from sliceserve.engine.messages import EngineInfo, Open
from sliceserve.scheduler.errors import RequestRefused
from sliceserve.scheduler.request import Request


def expect_servable(command: Open, info: EngineInfo) -> None:
    """Raise RequestRefused for what the scheduler cannot know: layers, codecs, the vocabulary."""
    offered = [0, *info.cuts] if info.thin or info.is_head else info.cuts
    if command.entry_layer not in offered:
        raise RequestRefused(
            "cut_not_offered",
            f"rows cannot enter at layer {command.entry_layer}; this engine offers "
            f"{', '.join(map(str, offered))}",
        )
    codecs = info.packet_codecs(command.entry_layer)
    if command.entry_layer > 0 and command.codec not in codecs:
        raise RequestRefused(
            "unsupported_codec",
            f"codec {command.codec!r} is not known here; known are {', '.join(codecs)}",
        )
    _expect_in_vocabulary((*command.prompt, *command.outputs), "token id", info.vocab_size)
    biased = [token_id for token_id, _ in command.sampling.logit_bias]
    _expect_in_vocabulary(biased, "logit_bias has token id", info.vocab_size)


def _expect_in_vocabulary(token_ids: Iterable[int], what: str, vocab_size: int) -> None:
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            raise RequestRefused(
                "invalid_request",
                f"{what} {token_id}, which is outside the vocabulary of {vocab_size}",
            )


def continues(command: Open, request: Request) -> bool:
    """Is the live request the one that the client means, with at most its last token unseen?

    Logprobs of its prompt that the client may have missed are not kept: it begins anew for them."""
    return (
        request.num_prompt == command.num_prompt
        and request.entry_layer == command.entry_layer
        and request.codec == command.codec
        and command.outputs in (request.outputs, request.outputs[:-1])
        and (bool(command.outputs) or request.num_to_score == 0)
    )


def with_seed(sampling: SamplingParams) -> SamplingParams:
    """With a seed drawn where one is needed and none was given."""
    if sampling.temperature == 0 or sampling.seed is not None:
        return sampling
    return structs.replace(sampling, seed=secrets.randbits(63))
