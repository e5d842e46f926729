"""One request of a split client: the engine's outputs in the words of the wire."""

from collections.abc import Iterable, Iterator

from sliceserve.api.metrics import RequestTimer
from sliceserve.engine.messages import RequestOutput
from sliceserve.scheduler.plan import Logprob
from sliceserve.transport.messages import (
    Alternative,
    Control,
    Credit,
    Error,
    Open,
    Opened,
    PromptLogprobs,
    PromptToken,
    Token,
    TokenTimes,
    Want,
)

# So many of a prompt's tokens, with the most alternatives each, fit a frame several times.
_PROMPT_TOKENS_PER_MESSAGE = 512


class SplitRequest:
    """Translates, and keeps what one output leaves to be said with a later one."""

    def __init__(self, opening: Open, timer: RequestTimer, tells_times: bool) -> None:
        """``tells_times``: the client knows of times with its tokens."""
        self.request_id = opening.request_id
        self._timer = timer
        self._tells_times = tells_times
        self._credit = 0
        # Busy time of the server that no Token has reported yet.
        self._seconds = 0.0

    def translate(self, output: RequestOutput) -> Iterator[Control]:
        """Messages for the client, in order."""
        self._seconds += output.seconds
        if output.opened and output.finish_reason != "error":
            self._credit = output.credit
            yield Opened(
                request_id=self.request_id,
                next_position=output.wanted or 0,
                credit=output.credit,
            )
        elif output.wanted is not None:
            yield Want(request_id=self.request_id, next_position=output.wanted)
        yield from self._prompt_logprobs(output)
        yield from self._tokens(output)
        if output.finish_reason == "error":
            self._timer.fail(output.error or "")
            yield Error(
                code=output.error_code or "internal_error",
                message=output.error or "the engine gave up this request",
                request_id=self.request_id,
                retry_after_s=output.retry_after_s,
            )
        elif output.finish_reason is None and output.credit > self._credit:
            self._credit = output.credit
            yield Credit(request_id=self.request_id, credit=output.credit)

    def _prompt_logprobs(self, output: RequestOutput) -> Iterator[PromptLogprobs]:
        for start in range(0, len(output.prompt_logprobs), _PROMPT_TOKENS_PER_MESSAGE):
            scores = output.prompt_logprobs[start : start + _PROMPT_TOKENS_PER_MESSAGE]
            yield PromptLogprobs(
                request_id=self.request_id,
                position=output.prompt_start + start,
                tokens=[
                    PromptToken(s.token_id, s.logprob, s.rank, _alternatives(s.top)) for s in scores
                ],
            )

    def _tokens(self, output: RequestOutput) -> Iterator[Token]:
        for i, token in enumerate(output.tokens):
            is_last = i == len(output.tokens) - 1
            self._timer.token(output.num_cached, output.times)
            yield Token(
                request_id=self.request_id,
                position=output.start + i,
                token_id=token.token_id,
                logprob=token.logprob,
                top=_alternatives(token.top),
                finish_reason=output.finish_reason if is_last else None,
                server_us=round(self._seconds * 1e6),
                times=self._times(output),
            )
            self._seconds = 0.0
        if output.tokens and output.finish_reason is not None:
            self._timer.finish(output.finish_reason)

    def leave(self) -> None:
        """No more of it is to be seen here, be it that it has ended."""
        self._timer.leave()

    def _times(self, output: RequestOutput) -> TokenTimes | None:
        times = output.times
        if times is None or not self._tells_times:
            return None
        parts = (times.queue_s, times.layers_s, times.exit_s)
        return TokenTimes(*(round(1e6 * seconds) for seconds in parts))


def _alternatives(top: Iterable[Logprob]) -> list[Alternative]:
    return [Alternative(other.token_id, other.logprob) for other in top]
