"""Logprobs of the prompt against transformers, however the prompt is computed."""

import random

import pytest
import torch
from driving import SplitRun, finish

from sliceserve.configs import SamplingParams
from sliceserve.engine import scoring
from sliceserve.engine.messages import AppendTokens, Cancel, Open

NUM_TOP = 3
SCORED = SamplingParams(max_tokens=4, prompt_logprobs=NUM_TOP, ignore_eos=True)
PLAIN = SamplingParams(max_tokens=4, ignore_eos=True)


def prompt_of(length, seed=0):
    rng = random.Random(seed)
    return [rng.randrange(3, 300) for _ in range(length)]


def open_thin(engine, request_id, prompt, sampling=SCORED, **changes):
    (opened,) = engine.handle(
        Open(
            request_id=request_id,
            num_prompt=len(prompt),
            prompt=prompt,
            sampling=sampling,
            **changes,
        )
    )
    assert opened.error is None


def scores_in(outputs, request_id):
    """Those of one request, each position once and before the first token."""
    scores, num_sampled = [], 0
    for output in outputs:
        if output.request_id != request_id:
            continue
        if output.prompt_logprobs:
            assert output.prompt_start == len(scores) + 1
            assert num_sampled == 0
        scores += output.prompt_logprobs
        num_sampled += len(output.tokens)
    return scores


def ids_of(outputs, request_id):
    return [t.token_id for o in outputs if o.request_id == request_id for t in o.tokens]


@pytest.fixture(scope="session")
def expect_scores(tiny_model):
    """Compares with the log-softmax that transformers makes of the whole prompt at once."""
    _, model = tiny_model

    def expect(scores, prompt):
        with torch.inference_mode():
            expected = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
        assert [score.token_id for score in scores] == prompt[1:]
        for score, row in zip(scores, expected, strict=False):
            assert score.logprob == pytest.approx(row[score.token_id].item(), abs=1e-3)
            assert score.rank == (row > row[score.token_id]).sum() + 1
            top = row.topk(NUM_TOP)
            assert [t.token_id for t in score.top] == top.indices.tolist()
            assert [t.logprob for t in score.top] == pytest.approx(top.values.tolist(), abs=1e-3)
            # One token, one number, wherever it stands.
            by_id = {t.token_id: t.logprob for t in score.top}
            assert by_id.get(score.token_id, score.logprob) == score.logprob

    return expect


@pytest.mark.parametrize("length", [1, 2, 8, 9, 61])
@pytest.mark.parametrize("step", [4, 64])
def test_thin_prompts_in_chunks(make_engine, expect_scores, monkeypatch, length, step):
    # Seven rows of logits at a time.
    monkeypatch.setattr(scoring, "_LOGITS_PER_SLICE", 7 * 300)
    engine = make_engine(max_tokens_per_step=step)
    prompts = {name: prompt_of(length, seed) for seed, name in enumerate("abc")}
    for name, prompt in prompts.items():
        open_thin(engine, name, prompt, PLAIN if name == "b" else SCORED)
    outputs = finish(engine)
    assert scores_in(outputs, "b") == []
    for name in "ac":
        expect_scores(scores_in(outputs, name), prompts[name])
    plain = make_engine()
    open_thin(plain, "a", prompts["a"], PLAIN)
    assert ids_of(finish(plain), "a") == ids_of(outputs, "a")


def test_tensor_parallel_ranks_score_together(make_engine, expect_scores, monkeypatch):
    monkeypatch.setattr(scoring, "_LOGITS_PER_SLICE", 7 * 300)
    engine = make_engine(tensor_parallel=2, cuts=())
    prompt = prompt_of(20)
    open_thin(engine, "a", prompt)
    expect_scores(scores_in(finish(engine), "a"), prompt)


def test_cached_prefixes_are_computed_again_for_their_logits(make_engine, expect_scores):
    engine = make_engine()
    prompt = prompt_of(40)
    open_thin(engine, "first", prompt, PLAIN)
    finish(engine)
    open_thin(engine, "scored", prompt)
    outputs = finish(engine)
    expect_scores(scores_in(outputs, "scored"), prompt)
    assert max(output.num_cached for output in outputs) == 0
    open_thin(engine, "plain", prompt, PLAIN)
    assert max(output.num_cached for output in finish(engine)) == 32


def test_each_token_is_scored_once_across_preemptions(make_engine, expect_scores):
    engine = make_engine(num_tokens=160, max_tokens_per_step=16)
    sampling = SamplingParams(max_tokens=30, prompt_logprobs=NUM_TOP, ignore_eos=True)
    prompts = {str(i): prompt_of(20 + i, i) for i in range(8)}
    for name, prompt in prompts.items():
        open_thin(engine, name, prompt, sampling)
    outputs = finish(engine)
    assert engine.stats().num_preempted_total > 0
    for name, prompt in prompts.items():
        expect_scores(scores_in(outputs, name), prompt)


def test_split_prompts_are_scored_by_the_tail(make_engine, expect_scores):
    tail = make_engine(first=1)
    run = SplitRun(tail, {3: make_engine(stop=3)})
    prompt = prompt_of(40)
    seen = []
    take, run.take = (
        run.take,
        lambda outputs: take(outputs := list(outputs)) or seen.extend(outputs),
    )
    for name in ("first", "again"):
        run.open(name, prompt, 3, SCORED)
        run.run()
        expect_scores(scores_in(seen, name), prompt)


def test_who_comes_back_before_the_first_token_is_told_all_again(make_engine, expect_scores):
    head, tail = make_engine(stop=3), make_engine(first=1, max_tokens_per_step=16)
    prompt = prompt_of(40)
    run = SplitRun(tail, {3: head})
    run.open("a", prompt, 3, SCORED)
    for _ in range(2):
        run.step()
    # The line is cut in the middle of the prompt, and what the tail says meanwhile is lost.
    assert 0 < tail.stats().num_tokens_total < len(prompt)
    finish(tail)
    opening = {"entry_layer": 3, "codec": "float32/1"}
    open_thin(tail, "a", prompt, **opening)
    run.num_sent["a"] = 0
    run.credit["a"] = 64
    run._send("a")
    outputs = finish(tail)
    expect_scores(scores_in(outputs, "a"), prompt)
    # With a token in hand it has had them all.
    (token,) = ids_of(outputs, "a")
    tail.handle(Cancel("a"))
    open_thin(tail, "a", prompt, outputs=[token], **opening)
    head.handle(AppendTokens("a", len(prompt), [token]))
    run.take(finish(head))
    run.num_sent["a"] = 0
    run._send("a")
    assert not any(output.prompt_logprobs for output in finish(tail))
    tail.handle(Cancel("a"))
    head.handle(Cancel("a"))
