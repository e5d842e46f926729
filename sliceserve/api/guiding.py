"""The grammar that a request holds its answers to."""

import asyncio

from sliceserve.api.errors import invalid
from sliceserve.api.protocol.structured import GuidedRequest, GuideMaker
from sliceserve.guides import GuideError, check


async def wanted_guide(request: GuidedRequest) -> str | None:
    """What ``SamplingParams.guide`` shall be; None where answers are free. Raises ApiError."""
    makers = request.guide_makers
    if not makers:
        return None
    if len(makers) > 1:
        names = " and ".join(makers)
        raise invalid(f"{names} exclude each other; send one of them", next(iter(makers)))
    ((param, make),) = makers.items()
    # Milliseconds, for a large schema more.
    return await asyncio.to_thread(checked_guide, param, make)


def checked_guide(param: str, make: GuideMaker) -> str:
    """A guide that can be followed. Raises ApiError, which names ``param``."""
    try:
        guide = make()
        check(guide)
    except GuideError as error:
        raise invalid(f"Invalid '{param}': {error}", param) from error
    return guide
