"""Likelihoods of continuations, against transformers and by hand."""

import random

import pytest
import torch

from sliceserve.evaluation.accuracy import choice_scores, compare
from sliceserve.evaluation.scoring import (
    Likelihood,
    Question,
    fit,
    likelihoods,
    tokenize_pair,
)
from sliceserve.evaluation.tasks import ChoiceItem


def final_states(whole, questions):
    prompts = [question.prompt for question in questions]
    hidden = whole.embed(prompts)
    whole.run(hidden, 0, whole.spec.num_layers, prompts)
    return hidden


@torch.inference_mode()
def test_likelihoods_are_those_of_transformers(tiny, whole, monkeypatch):
    monkeypatch.setattr("sliceserve.evaluation.scoring._ROWS_OF_LOGITS", 7)
    rng = random.Random(0)

    def tokens(n):
        return [rng.randrange(3, 300) for _ in range(n)]

    questions = [
        Question(tokens(5), [tokens(3), tokens(1), tokens(20)]),
        Question(tokens(1), [tokens(2)]),
        Question(tokens(40), [tokens(1), tokens(1)]),
    ]
    # One continuation that the model itself would write.
    context = questions[1].context
    for _ in range(3):
        context = [*context, tiny[1](torch.tensor([context])).logits[0, -1].argmax().item()]
    questions.append(Question(context[:1], [context[1:], [*context[1:3], context[3] ^ 1]]))
    found = likelihoods(whole, final_states(whole, questions), questions)
    for question, of_question in zip(questions, found, strict=True):
        for continuation, likelihood in zip(question.continuations, of_question, strict=True):
            ids = torch.tensor([[*question.context, *continuation]])
            logprobs = tiny[1](ids).logits[0].double().log_softmax(-1)
            rows = range(len(question.context) - 1, ids.shape[1] - 1)
            expected = sum(logprobs[row, ids[0, row + 1]].item() for row in rows)
            assert likelihood.logprob == pytest.approx(expected, rel=1e-3)
            assert likelihood.is_greedy == all(
                logprobs[row].argmax() == ids[0, row + 1] for row in rows
            )
    assert [likelihood.is_greedy for likelihood in found[-1]] == [True, False]


def test_the_last_token_is_not_computed():
    prompt = Question([1, 2], [[3, 4], [5]]).prompt
    assert prompt.rows == [1, 2, 3]


def test_spaces_between_belong_to_the_continuation(whole):
    class Letters:
        def encode(self, text):
            return list(text)

    pair = tokenize_pair(Letters(), "a b  ", "cd", max_length=100)
    assert pair == (list("a b"), list("  cd"))


@pytest.mark.parametrize(("max_length", "kept"), [(6, "abcd"), (5, "bcd"), (3, "d")])
def test_too_long_a_context_loses_its_beginning(max_length, kept):
    assert fit(list("abcd"), list("xyz"), max_length) == (list(kept), list("xyz"))


@pytest.mark.parametrize(
    ("logprobs", "acc", "acc_norm"),
    [
        ((-4.0, -6.0, -9.0), 1.0, 0.0),  # -4/1, -6/3, -9/2
        ((-4.0, -16.0, -3.0), 0.0, 0.0),  # -4, -5.3, -1.5
        ((-1.0, -8.0, -9.0), 1.0, 1.0),  # -1, -2.7, -4.5
        ((-2.0, -2.0, -4.0), 1.0, 0.0),  # a tie goes to the first
    ],
)
def test_choices_by_hand(logprobs, acc, acc_norm):
    item = ChoiceItem("Question", ("a", "bcd", "ef"), answer=0)
    scores = choice_scores(item, [Likelihood(value, False) for value in logprobs])
    assert scores == {"acc": acc, "acc_norm": acc_norm}


def test_differences_are_paired():
    """Of 4 items one gets better and two get worse: 1, -1, -1, 0."""
    uncut = [{"acc": value} for value in (0.0, 1.0, 1.0, 1.0)]
    coded = [{"acc": value} for value in (1.0, 0.0, 0.0, 1.0)]
    result = compare(uncut, coded)["acc"]
    assert (result["uncompressed"], result["coded"]) == (0.75, 0.5)
    assert result["difference"] == -0.25
    variance = (1.25**2 + 2 * 0.75**2 + 0.25**2) / 3
    assert result["ci95"] == pytest.approx(1.96 * (variance / 4) ** 0.5)
    assert compare(uncut, uncut)["acc"]["ci95"] == 0
    assert compare(uncut[:1], coded[:1])["acc"]["ci95"] == 0
