"""A codec's previous state is that of the same request's row before, whatever the steps were."""

import random

import pytest
import torch
from driving import SplitRun, finish
from predictive import WIRE_ID

from sliceserve.codec.base import Run
from sliceserve.configs import SamplingParams
from sliceserve.engine.messages import AppendPackets, Cancel, Detach, Open
from sliceserve.scheduler.errors import SchedulerError
from sliceserve.scheduler.plan import ScheduledRequest, StepPlan

GREEDY = SamplingParams(max_tokens=12, ignore_eos=True)
HIDDEN_SIZE = 72


def prompts(num, seed, longest=40):
    rng = random.Random(seed)
    return [[rng.randrange(3, 300) for _ in range(rng.randrange(1, longest))] for _ in range(num)]


def split_run(make_engine, cuts=(3,), tail=None, head=None):
    heads = {cut: make_engine(stop=cut, **(head or {})) for cut in cuts}
    return SplitRun(make_engine(**(tail or {})), heads, WIRE_ID)


def expect_states_of_requests_alone(codec, run):
    """Both sides came to the states that each request's packets alone lead to."""
    encoded, decoded = dict(codec.encoded), dict(codec.decoded)
    for packets in filter(None, run.packets.values()):
        alone = torch.empty(len(packets), HIDDEN_SIZE)
        codec.decode(packets, alone, [Run(len(packets))])
        for packet, state in zip(packets, alone, strict=True):
            assert torch.equal(encoded[packet], state)
            # The last one may not have been needed.
            assert torch.equal(decoded.get(packet, state), state)


@pytest.mark.parametrize("max_tokens_per_step", [512, 13, 7, 1])
def test_chunks_and_batches_of_any_size(make_engine, codec, max_tokens_per_step):
    limits = {"max_tokens_per_step": max_tokens_per_step}
    run = split_run(make_engine, (1, 3, 5), limits, limits)
    for i, prompt in enumerate(prompts(7, seed=1)):
        run.open(str(i), prompt, (1, 3, 5)[i % 3], GREEDY)
        run.step()
    # Thin requests, and such under another codec, in the same batches.
    run.open("thin", [3, 4, 5], 0, GREEDY)
    tail = run.tail
    tail.handle(Open(request_id="plain", entry_layer=3, num_prompt=9, codec="float32/1"))
    tail.handle(AppendPackets("plain", 0, [bytes(4 * HIDDEN_SIZE)] * 8))
    run.run()
    tail.handle(Cancel("plain"))
    assert all(len(tokens) == 12 for tokens in run.tokens.values())
    expect_states_of_requests_alone(codec, run)


@pytest.mark.parametrize("num_tokens", [{"tail": 96, "head": 1024}, {"tail": 1024, "head": 64}])
def test_preemption_replays_to_the_same_states(make_engine, codec, num_tokens):
    sizes = {side: {"num_tokens": n, "max_tokens_per_step": 7} for side, n in num_tokens.items()}
    run = split_run(make_engine, **sizes)
    known = prompts(6, seed=3, longest=24)
    for i, prompt in enumerate(known):
        run.open(str(i), prompt, 3, GREEDY)
    run.run()
    small = run.tail if num_tokens["tail"] < 1024 else run.heads[3]
    assert small.stats().num_preempted_total > 0
    expect_states_of_requests_alone(codec, run)
    # What was sent is not coded again.
    assert codec.num_rows_encoded - 2 == sum(map(len, run.packets.values()))


def test_a_resumed_request_goes_on_from_its_state(make_engine, codec):
    run = split_run(make_engine)
    run.open("a", prompts(1, seed=9)[0], 3, GREEDY)
    while len(run.tokens["a"]) < 4:
        run.step()
    run.tail.handle(Detach("a"))
    opening = Open(
        request_id="a",
        entry_layer=3,
        num_prompt=len(prompts(1, seed=9)[0]),
        outputs=run.tokens["a"][:],
        sampling=GREEDY,
        codec=WIRE_ID,
    )
    (answer,) = run.tail.handle(opening)
    assert answer.opened and answer.wanted > 0
    run.run()
    expect_states_of_requests_alone(codec, run)


def test_a_request_that_is_opened_anew_begins_without_a_state(make_engine, codec):
    run = split_run(make_engine)
    run.open("a", [3, 4, 5], 3, GREEDY)
    run.step()
    run.step()
    run.heads[3].handle(Cancel("a"))
    run.open("a", [6, 7, 8, 9], 3, GREEDY)
    run.run()
    expect_states_of_requests_alone(codec, run)


def test_a_packet_that_fails_in_the_step_ends_its_request_alone(make_engine, codec):
    run = split_run(make_engine, tail={"max_tokens_per_step": 9})
    for i, prompt in enumerate(prompts(5, seed=5)):
        run.open(str(i), prompt, 3, GREEDY)
    while min(map(len, run.tokens.values())) < 3:
        run.step()
    packets = [bytes(4 * HIDDEN_SIZE + 4)[:-1] + bytes([i]) for i in (1, 2)]
    codec.poison |= set(packets)
    # Each opens with a good packet, so that there is a state to fall back to, or to forget.
    for i, packet in enumerate(packets):
        run.tail.handle(Open(request_id=f"bad-{i}", entry_layer=3, num_prompt=3, codec=WIRE_ID))
        good = bytes(4 * HIDDEN_SIZE + 3) + bytes([9 + i])
        assert run.tail.handle(AppendPackets(f"bad-{i}", 0, [good, packet])) == []
    run.run()
    ended = {output.request_id: output.error_code for output in run.others if output.error}
    assert ended == {"bad-0": "invalid_packet", "bad-1": "invalid_packet"}
    assert all(len(tokens) == 12 for tokens in run.tokens.values())
    expect_states_of_requests_alone(codec, run)


def test_a_step_of_bad_packets_alone(make_engine, codec):
    tail = make_engine()
    bad = bytes(4 * HIDDEN_SIZE + 4)
    codec.poison.add(bad)
    tail.handle(Open(request_id="bad", entry_layer=3, num_prompt=3, codec=WIRE_ID))
    tail.handle(AppendPackets("bad", 0, [bad]))
    (answer,) = finish(tail)
    assert (answer.request_id, answer.finish_reason) == ("bad", "error")
    assert "no finite value" in answer.error


def test_a_gap_between_states_is_an_error(make_engine, codec):
    tail = make_engine()
    packet = bytes(4 * HIDDEN_SIZE + 4)

    def step(start):
        request = ScheduledRequest(
            request_id="a",
            entry_layer=3,
            start=start,
            inputs=[packet],
            block_tables=[[0]] * 4,
            codec=WIRE_ID,
        )
        return tail._runner.run(StepPlan([request]))

    with pytest.raises(SchedulerError, match=r"at position 1.*position 0"):
        step(1)
    step(0)
    with pytest.raises(SchedulerError, match=r"at position 2.*position 1"):
        step(2)
    with pytest.raises(SchedulerError, match="have ended"):
        tail.check()
    tail._runner.forget("a")
