"""How often a model is right at a task, with and without a codec, item for item."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sliceserve.evaluation.coding import Traffic
from sliceserve.evaluation.generation import Channel, generate
from sliceserve.evaluation.model import WholeModel
from sliceserve.evaluation.points import Point, Sweep, choose_on_sample, run_coded
from sliceserve.evaluation.progress import Progress, silent
from sliceserve.evaluation.prompts import Prompt
from sliceserve.evaluation.scoring import (
    Likelihood,
    Question,
    in_blocks,
    likelihoods,
    tokenize_pair,
)
from sliceserve.evaluation.states import capture
from sliceserve.evaluation.tasks import ChoiceItem, GenerationItem, Task

_TEXTS_AT_A_TIME = 16
# Two-sided, 95 % of a normal distribution.
_Z = 1.96
_NOTHING = Traffic()


@dataclass
class _Scored:
    """Of one pass over the items: each metric of each item, 0 or 1, and what was sent."""

    metrics: list[dict[str, float]] = field(default_factory=list)
    prompts: Traffic = _NOTHING
    generated: Traffic = _NOTHING


@torch.inference_mode()
def task_accuracy(
    model: WholeModel,
    task: Task,
    folder: Path,
    limit: int | None,
    sweep: Sweep,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """One result for each operating point of ``sweep``: its description, and for each metric the
    accuracy uncut and coded, and the mean of their paired differences with half its confidence
    interval of 95 %.

    Settings for a budget are chosen on a sample of the items, and bits are those of all of them.
    """
    items = task.load(folder, limit)
    choices = [item for item in items if isinstance(item, ChoiceItem)]
    texts = [item for item in items if isinstance(item, GenerationItem)]
    if choices:
        questions = [_question(model, item) for item in choices]
        points = choose_on_sample(model, [q.prompt for q in questions], sweep, progress)
        uncut, coded = _choose(model, choices, questions, points, sweep, progress)
    else:
        prompts = [model.tokenizer.encode(item.prompt) for item in texts]
        points = choose_on_sample(model, list(map(Prompt, prompts)), sweep, progress)
        uncut = _write(model, texts, prompts, None, task.name, progress)
        coded = [
            _write(model, texts, prompts, _channel(model, point, sweep), task.name, progress)
            for point in points
        ]
    return [
        {"task": task.name}
        | point.describe(model, scored.prompts)
        | _generated(model, scored.generated)
        | {"num_items": len(items), "metrics": compare(uncut.metrics, scored.metrics)}
        for point, scored in zip(points, coded, strict=True)
    ]


def compare(
    uncut: Sequence[dict[str, float]], coded: Sequence[dict[str, float]]
) -> dict[str, dict[str, float]]:
    """For each metric: both means, the mean of the paired differences, and 1.96 of its standard
    errors, 0 where there is one item."""
    n = len(uncut)
    result = {}
    for name in uncut[0]:
        differences = [b[name] - a[name] for a, b in zip(uncut, coded, strict=True)]
        mean = sum(differences) / n
        variance = sum((d - mean) ** 2 for d in differences) / max(1, n - 1)
        result[name] = {
            "uncompressed": sum(scores[name] for scores in uncut) / n,
            "coded": sum(scores[name] for scores in coded) / n,
            "difference": mean,
            "ci95": _Z * math.sqrt(variance / n),
        }
    return result


def choice_scores(item: ChoiceItem, of_choices: Sequence[Likelihood]) -> dict[str, float]:
    """acc takes the likeliest choice, acc_norm the likeliest for each of its characters (as
    lm-evaluation-harness counts them); the first wins a tie."""
    plain = [likelihood.logprob for likelihood in of_choices]
    normed = [
        logprob / max(1, len(choice)) for logprob, choice in zip(plain, item.choices, strict=True)
    ]
    return {
        "acc": float(plain.index(max(plain)) == item.answer),
        "acc_norm": float(normed.index(max(normed)) == item.answer),
    }


def _choose(
    model: WholeModel,
    items: Sequence[ChoiceItem],
    questions: Sequence[Question],
    points: Sequence[Point],
    sweep: Sweep,
    progress: Progress,
) -> tuple[_Scored, list[_Scored]]:
    """All points share what the head computes; blocks of items bound the memory for it."""
    uncut, coded = _Scored(), [_Scored() for _ in points]
    last = model.spec.num_layers
    for here in in_blocks(questions):
        prompts = [question.prompt for question in questions[here]]
        states = capture(model, prompts, [*(point.cut for point in points), last], progress)
        uncut.metrics += _score(model, items[here], questions[here], states[last])
        for point, scored in zip(points, coded, strict=True):
            final, sent = run_coded(
                model, prompts, states[point.cut], point, sweep.tokens_per_frame, progress
            )
            scored.prompts += sent
            scored.metrics += _score(model, items[here], questions[here], final)
    return uncut, coded


def _score(
    model: WholeModel,
    items: Sequence[ChoiceItem],
    questions: Sequence[Question],
    final: torch.Tensor,
) -> list[dict[str, float]]:
    of_items = likelihoods(model, final, questions)
    return [choice_scores(item, found) for item, found in zip(items, of_items, strict=True)]


def _write(
    model: WholeModel,
    items: Sequence[GenerationItem],
    prompts: Sequence[Sequence[int]],
    channel: Channel | None,
    name: str,
    progress: Progress,
) -> _Scored:
    scored = _Scored()
    with progress(f"{name} {'coded' if channel else 'uncut'}, texts", len(items)) as advance:
        for start in range(0, len(items), _TEXTS_AT_A_TIME):
            here = slice(start, start + _TEXTS_AT_A_TIME)
            first = items[start]
            texts = generate(model, prompts[here], first.until, first.max_tokens, channel, advance)
            pairs = zip(items[here], texts, strict=True)
            scored.metrics += [item.scores(text) for item, text in pairs]
    if channel is not None:
        scored.prompts, scored.generated = channel.prompts, channel.generated
    return scored


def _channel(model: WholeModel, point: Point, sweep: Sweep) -> Channel:
    return Channel(model.codec(point.codec, point.cut), point.cut, sweep.tokens_per_frame)


def _generated(model: WholeModel, sent: Traffic) -> dict[str, Any]:
    if sent.num_tokens == 0:
        return {}
    return {
        "generated_tokens": sent.num_tokens,
        "generated_bits_per_element": sent.rate(model.spec.hidden_size),
    }


def _question(model: WholeModel, item: ChoiceItem) -> Question:
    limit = model.spec.max_position_embeddings
    pairs = [tokenize_pair(model.tokenizer, item.context, f" {c}", limit) for c in item.choices]
    # Where a long choice has pushed out the context's beginning, it is pushed out for all.
    context = min((context for context, _ in pairs), key=len)
    return Question(context, [continuation for _, continuation in pairs])
