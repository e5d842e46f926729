"""Biases, penalties and early ends against a dense restatement, and their independence."""

import pytest
import torch
from driving import SplitRun, finish
from msgspec.structs import replace

from sliceserve.configs import SamplingParams
from sliceserve.engine.adjustments import Adjustments
from sliceserve.engine.messages import Open
from sliceserve.scheduler.plan import ScheduledRequest

VOCAB = 300
EOS = 2
# Prompt and outputs overlap, and outputs repeat.
PROMPT = [5, 6, 7, 5, 100]
OUTPUTS = [7, 8, 8, 8, 200, EOS]
ALL = SamplingParams(
    temperature=0.9,
    seed=4,
    max_tokens=24,
    logit_bias={9: 3.0, 8: -2.5, 100: 1.0},
    presence_penalty=0.7,
    frequency_penalty=-0.4,
    repetition_penalty=1.3,
    min_tokens=10,
    stop_token_ids=(11, VOCAB + 5),
)
KINDS = {
    "nothing": SamplingParams(),
    "bias": SamplingParams(logit_bias={0: -100.0, VOCAB - 1: 100.0}),
    "presence": SamplingParams(presence_penalty=1.5),
    "frequency": SamplingParams(frequency_penalty=0.3),
    "repetition": SamplingParams(repetition_penalty=0.5),
    "early end": SamplingParams(min_tokens=7, stop_token_ids=(8,)),
    "no end": SamplingParams(min_tokens=7, stop_token_ids=(8,), ignore_eos=True),
    "late end": SamplingParams(min_tokens=6, stop_token_ids=(8,)),
    "all": ALL,
}


def scheduled(request_id, sampling, prompt=PROMPT, outputs=OUTPUTS):
    return ScheduledRequest(
        request_id=request_id,
        entry_layer=0,
        start=0,
        inputs=[],
        block_tables=[],
        sampling=sampling,
        prompt=prompt if sampling.needs_prompt else [],
        outputs=outputs,
    )


def restated(row, sampling, prompt=PROMPT, outputs=OUTPUTS):
    """As OpenAI and vLLM define them, over the whole vocabulary."""
    row = row.clone()
    for token_id, bias in sampling.logit_bias:
        row[token_id] += bias
    counts = torch.bincount(torch.tensor(outputs, dtype=torch.int64), minlength=VOCAB)
    seen = counts > 0
    seen[prompt] = True
    penalized = torch.where(
        row > 0, row / sampling.repetition_penalty, row * sampling.repetition_penalty
    )
    row = torch.where(seen, penalized, row)
    row -= sampling.frequency_penalty * counts
    row -= sampling.presence_penalty * (counts > 0)
    if len(outputs) < sampling.min_tokens:
        ends = [i for i in sampling.stop_token_ids if i < VOCAB]
        row[ends + [EOS] * (not sampling.ignore_eos)] = -torch.inf
    return row


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(len(KINDS), VOCAB, generator=generator) * 4


def test_all_kinds_in_one_batch_are_as_defined(logits):
    requests = [scheduled(name, sampling) for name, sampling in KINDS.items()]
    expected = [restated(row, s) for row, s in zip(logits, KINDS.values(), strict=True)]
    Adjustments([EOS]).apply(logits, requests)
    torch.testing.assert_close(logits, torch.stack(expected))


def test_counts_that_grow_are_those_of_all_tokens_at_once(logits):
    growing, outputs = Adjustments([EOS]), []
    for token_id in [*OUTPUTS, 5, 5, 250]:
        outputs.append(token_id)
        row = logits[:1].clone()
        growing.apply(row, [scheduled("r", ALL, outputs=outputs)])
        anew = logits[:1].clone()
        Adjustments([EOS]).apply(anew, [scheduled("r", ALL, outputs=outputs)])
        assert torch.equal(row, anew)
    growing.forget("r")
    growing.check(())


def test_a_batch_that_asks_for_nothing_is_left_as_it_is(logits):
    before = logits.clone()
    adjustments = Adjustments([EOS])
    adjustments.apply(logits, [scheduled(str(i), SamplingParams()) for i in range(len(KINDS))])
    assert torch.equal(logits, before)


def generate(engine, **requests):
    """Token ids by request, of requests that run together."""
    for request_id, (prompt, sampling) in requests.items():
        opened = Open(
            request_id=request_id, num_prompt=len(prompt), prompt=prompt, sampling=sampling
        )
        assert engine.handle(opened)[0].error is None
    tokens = {request_id: [] for request_id in requests}
    for output in finish(engine):
        assert output.error is None
        tokens[output.request_id] += [token.token_id for token in output.tokens]
    return tokens


def test_an_engine_chooses_what_the_restatement_does(tiny_model, make_engine):
    _, model = tiny_model
    greedy = replace(ALL, temperature=0.0, seed=None)
    chosen = generate(make_engine(), a=(PROMPT, greedy))["a"]
    plain = generate(make_engine(), a=(PROMPT, SamplingParams(max_tokens=24)))["a"]
    assert chosen != plain
    with torch.inference_mode():
        for i, token_id in enumerate(chosen):
            logits = model(torch.tensor([PROMPT + chosen[:i]])).logits[0, -1]
            assert restated(logits, greedy, outputs=chosen[:i]).argmax() == token_id


def test_batches_preemptions_and_cuts_change_nothing(make_engine):
    requests = {str(i): (PROMPT + [20 + i] * i, replace(ALL, seed=i)) for i in range(12)}
    alone = {}
    for request_id, request in requests.items():
        alone |= generate(make_engine(), **{request_id: request})
    assert len({tuple(tokens) for tokens in alone.values()}) == 12
    short = make_engine(num_tokens=96, max_tokens_per_step=16)
    assert generate(short, **requests) == alone
    assert short.stats().num_preempted_total > 0


@pytest.mark.parametrize("num_given", [1, 13])
def test_another_server_goes_on_as_the_first_would_have(make_engine, num_given):
    whole = generate(make_engine(), a=(PROMPT, ALL))["a"]
    engine = make_engine()
    engine.handle(
        Open(
            request_id="a",
            num_prompt=len(PROMPT),
            prompt=PROMPT,
            outputs=whole[:num_given],
            sampling=ALL,
        )
    )
    rest = [token.token_id for output in finish(engine) for token in output.tokens]
    assert whole[:num_given] + rest == whole


def test_split_requests_are_treated_alike(make_engine):
    whole = generate(make_engine(), a=(PROMPT, ALL))["a"]
    run = SplitRun(make_engine(), {3: make_engine(stop=3)})
    run.open("a", PROMPT, 3, ALL)
    assert run.run()["a"] == whole


def test_no_end_before_min_tokens(make_engine):
    # What the model would say first of all ends the answer.
    first = generate(make_engine(), a=(PROMPT, SamplingParams(max_tokens=1)))["a"]
    sampling = SamplingParams(max_tokens=20, stop_token_ids=(*first,), ignore_eos=True)
    assert generate(make_engine(), a=(PROMPT, sampling))["a"] == first
    tokens = generate(make_engine(), a=(PROMPT, replace(sampling, min_tokens=5)))["a"]
    assert len(tokens) >= 5
    assert not set(first) & set(tokens[:5])


def test_what_cannot_be_is_refused(make_engine):
    engine = make_engine()
    biased = SamplingParams(logit_bias={VOCAB: 1.0})
    (refused,) = engine.handle(Open(request_id="a", num_prompt=1, prompt=[3], sampling=biased))
    assert (refused.error_code, "logit_bias" in refused.error) == ("invalid_request", True)
    (refused,) = engine.handle(
        Open(request_id="a", entry_layer=1, num_prompt=1, codec="float32/1", sampling=ALL)
    )
    assert (refused.error_code, "token ids" in refused.error) == ("invalid_request", True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"presence_penalty": 2.1},
        {"frequency_penalty": float("nan")},
        {"repetition_penalty": 0.0},
        {"logit_bias": {3: 101.0}},
        {"logit_bias": {3: float("nan")}},
        {"logit_bias": {-1: 1.0}},
        {"logit_bias": ((3, 1.0), (3, 2.0))},
        {"min_tokens": -1},
        {"prompt_logprobs": 21},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SamplingParams(**wrong)
