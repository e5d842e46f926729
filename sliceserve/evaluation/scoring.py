"""Log-likelihoods of continuations, as lm-evaluation-harness defines them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from sliceserve.evaluation.model import WholeModel
from sliceserve.evaluation.prompts import Prompt, grouped
from sliceserve.models.tokenizer import Tokenizer

_ROWS_OF_LOGITS = 128
# Rows whose hidden states are held at a time, for every cut.
_ROWS_PER_BLOCK = 16384


@dataclass(frozen=True, slots=True)
class Question:
    """A context and the continuations whose likelihood is asked for, in tokens; none is empty."""

    context: Sequence[int]
    continuations: Sequence[Sequence[int]]

    @property
    def prompt(self) -> Prompt:
        """What must be computed: nothing is predicted from the last token of a continuation."""
        return Prompt(self.context, [tokens[:-1] for tokens in self.continuations])


@dataclass(frozen=True, slots=True)
class Likelihood:
    """``logprob`` of a continuation in nats, and whether each of its tokens is the likeliest."""

    logprob: float
    is_greedy: bool


def tokenize_pair(
    tokenizer: Tokenizer, context: str, continuation: str, max_length: int
) -> tuple[list[int], list[int]]:
    """Tokens of a context that is not empty, and those that a continuation adds to them. Spaces at
    the context's end count to the continuation, and beyond ``max_length`` the context loses its
    beginning."""
    stripped = context.rstrip()
    whole = tokenizer.encode(context + continuation)
    tokens = tokenizer.encode(stripped)
    return fit(tokens, whole[len(tokens) :], max_length)


def fit(
    context: list[int], continuation: list[int], max_length: int
) -> tuple[list[int], list[int]]:
    """A pair of which no more than ``max_length`` tokens, all but the last, must be computed."""
    num_over = len(context) + len(continuation) - 1 - max_length
    return (context[num_over:] if num_over > 0 else context), continuation


def in_blocks(questions: Sequence[Question]) -> Iterator[slice]:
    """Where questions lie of which few enough come at a time to hold their hidden states."""
    start = 0
    for _, prompts in grouped([question.prompt for question in questions], _ROWS_PER_BLOCK):
        yield slice(start, start + len(prompts))
        start += len(prompts)


def likelihoods(
    model: WholeModel, final: torch.Tensor, questions: Sequence[Question]
) -> list[list[Likelihood]]:
    """One for each continuation of each question. ``final``: what has left the last layer,
    (T, hidden_size), the rows of the questions' prompts. Only the rows that predict a token of a
    continuation become logits."""
    rows: list[int] = []
    targets: list[int] = []
    start = 0
    for question in questions:
        prompt = question.prompt
        for sequence, tokens in zip(prompt.sequences(), question.continuations, strict=True):
            rows += (start + row for row in sequence[len(question.context) - 1 :])
            targets += tokens
        start += prompt.num_rows
    logprobs, is_best = _token_likelihoods(model, final, rows, targets)
    results = []
    place = 0
    for question in questions:
        of_question = []
        for tokens in question.continuations:
            span = slice(place, place + len(tokens))
            of_question.append(Likelihood(sum(logprobs[span]), all(is_best[span])))
            place += len(tokens)
        results.append(of_question)
    return results


def _token_likelihoods(
    model: WholeModel, final: torch.Tensor, rows: list[int], targets: list[int]
) -> tuple[list[float], list[bool]]:
    """Of target i after row ``rows[i]`` of ``final``: log-probability, and whether it is the
    likeliest. Rows may come more than once; each becomes logits once."""
    distinct, places = torch.unique(torch.tensor(rows, device=final.device), return_inverse=True)
    wanted = torch.tensor(targets, device=final.device)
    logprobs = torch.empty(len(rows), device=final.device)
    is_best = torch.empty(len(rows), dtype=torch.bool, device=final.device)
    for start in range(0, len(distinct), _ROWS_OF_LOGITS):
        logits = model.decoder.logits(final[distinct[start : start + _ROWS_OF_LOGITS]])
        here = ((places >= start) & (places < start + len(logits))).nonzero().squeeze(1)
        of_logits, tokens = places[here] - start, wanted[here]
        logprobs[here] = logits[of_logits, tokens] - logits.logsumexp(-1)[of_logits]
        is_best[here] = logits.argmax(-1)[of_logits] == tokens
    return logprobs.tolist(), is_best.tolist()
