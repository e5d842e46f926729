"""The model that lm-evaluation-harness sees."""

import random
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-evaluation-harness comes with the extra [eval]")

from sliceserve.evaluation.errors import EvaluationError
from sliceserve.evaluation.harness import SliceServeLM


def words(rng, n):
    return " ".join(f"w{rng.randrange(3, 300)}" for _ in range(n))


def requests(*args):
    return [SimpleNamespace(args=one) for one in args]


@pytest.fixture(scope="module")
def make(tiny):
    made = {}

    def model(**settings):
        key = tuple(sorted(settings.items()))
        if key not in made:
            made[key] = SliceServeLM(model=str(tiny[0]), split=3, device="cpu", **settings)
        return made[key]

    return model


def token_ids(text):
    return [int(word[1:]) for word in text.split()]


@torch.inference_mode()
def logprobs(tiny, ids):
    return tiny[1](torch.tensor([ids])).logits[0].double().log_softmax(-1)


@pytest.mark.parametrize("codec", ["none", "float32"])
def test_likelihoods_are_those_of_transformers(tiny, make, codec):
    rng = random.Random(0)
    contexts = [words(rng, 6), words(rng, 3), ""]
    # Contexts come back, in no order.
    asked = [(contexts[i], f" {words(rng, rng.randrange(1, 5))}") for i in (0, 1, 0, 2, 1)]
    found = make(codec=codec).loglikelihood(requests(*asked), disable_tqdm=True)
    for (context, continuation), (logprob, is_greedy) in zip(asked, found, strict=True):
        # Without a context the first token of all is the tokenizer's.
        before, after = token_ids(context) or [1], token_ids(continuation)
        rows = logprobs(tiny, before + after)[len(before) - 1 : -1]
        expected = sum(row[token].item() for row, token in zip(rows, after, strict=True))
        assert logprob == pytest.approx(expected, rel=1e-3)
        assert is_greedy == (rows.argmax(-1).tolist() == after)


def test_a_long_text_is_scored_in_windows(tiny, make):
    """Each token once, in windows of all the model's positions; the last one has the fullest
    context."""
    text = words(random.Random(1), 300)
    (found,) = make(codec="none").loglikelihood_rolling(requests((text,)), disable_tqdm=True)
    ids, limit = token_ids(text), 256
    first = logprobs(tiny, [1, *ids[: limit - 1]])
    last = logprobs(tiny, ids[-limit - 1 : -1])
    expected = sum(row[token].item() for row, token in zip(first, ids, strict=False))
    rest = ids[limit:]
    expected += sum(row[token].item() for row, token in zip(last[-len(rest) :], rest, strict=True))
    assert found == pytest.approx(expected, rel=1e-3)


def test_texts_end_as_their_tasks_say(make):
    rng = random.Random(2)
    prompts = [words(rng, 5) for _ in range(5)]
    model = make(codec="float32")
    long = model.generate_until(requests(*((p, {"max_gen_toks": 9}) for p in prompts)))
    assert {len(text.split()) for text in long} <= set(range(10))
    word = long[3].split()[4]
    settings = [{"max_gen_toks": 9}] * 3 + [{"max_gen_toks": 9, "until": [word]}] * 2
    mixed = model.generate_until(requests(*zip(prompts, settings, strict=True)))
    assert mixed[:3] == long[:3]
    assert mixed[3:] == [text.split(word)[0] for text in long[3:]]
    with pytest.raises(EvaluationError, match="here they are greedy"):
        model.generate_until(requests((prompts[0], {"do_sample": True, "temperature": 0.7})))


def test_a_budget_is_kept_from_the_first_requests_on(make):
    rng = random.Random(3)
    asked = requests(*((words(rng, 20), words(rng, 3)) for _ in range(4)))
    model = make(codec="slicer", bits_per_element=4)
    first = model.loglikelihood(asked, disable_tqdm=True)
    assert first == model.loglikelihood(asked, disable_tqdm=True)
    uncut = make(codec="none").loglikelihood(asked, disable_tqdm=True)
    assert all(a[0] != b[0] for a, b in zip(first, uncut, strict=True))


def test_the_harness_knows_it_by_name():
    from lm_eval.api.registry import get_model

    assert get_model("sliceserve") is SliceServeLM
    # Beside its own, in whatever order they were imported.
    assert get_model("local-completions") is not None
