"""A stream of chunks, as /v1/completions and /v1/chat/completions send it."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable

import msgspec

from sliceserve.api.answering import Chunks, Job
from sliceserve.api.errors import as_api_error
from sliceserve.api.event_stream import encode_event
from sliceserve.api.replies import Reply, Usage
from sliceserve.engine.generation import TextChunk


class ChunkFormat(ABC):
    """A ``Format`` whose streams are chunks of replies, one event each, up to "[DONE]"."""

    @abstractmethod
    def beginning(self, index: int) -> Reply | None:
        """The chunk that comes before the first text of answer ``index``."""

    @abstractmethod
    def deltas(self, index: int, chunk: TextChunk) -> Iterable[Reply]:
        """The chunks of answer ``index`` that a piece of it makes, if any."""

    @abstractmethod
    def usage(self, usage: Usage) -> Reply:
        """The last chunk, if usage was asked for."""

    async def events(self, job: Job, chunks: Chunks) -> AsyncIterator[bytes]:
        include_usage = job.request.include_usage
        try:
            for index in range(len(job.answers)):
                if (beginning := self.beginning(index)) is not None:
                    yield _event(beginning, include_usage)
            async for index, chunk in chunks:
                for reply in self.deltas(index, chunk):
                    if job.request.continuous_usage:
                        reply = msgspec.structs.replace(reply, usage=job.usage_of(index))
                    yield _event(reply, include_usage)
            if include_usage:
                yield _event(self.usage(job.usage), include_usage)
        except Exception as error:
            # The status has been sent; this is the only place left to say it.
            yield encode_event(as_api_error(error).body)
        yield b"data: [DONE]\n\n"


def is_visible(chunk: TextChunk) -> bool:
    """Nothing is sent for a token whose text is held back, unless its logprobs were asked for."""
    has_logprob = chunk.token is not None and chunk.token.logprob is not None
    return bool(chunk.text) or chunk.finish_reason is not None or has_logprob


def _event(reply: Reply, include_usage: bool) -> bytes:
    if include_usage and reply.usage is msgspec.UNSET:
        reply = msgspec.structs.replace(reply, usage=None)
    return encode_event(reply)
