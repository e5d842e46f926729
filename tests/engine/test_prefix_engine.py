"""Texts and packets are the same with the prefix cache and without it; only the work differs."""

import random

import pytest
import torch
from driving import SplitRun, finish
from predictive import WIRE_ID

from sliceserve.codec.base import Run
from sliceserve.configs import SamplingParams
from sliceserve.engine.messages import Cancel, Open
from sliceserve.scheduler.prefix import block_digests

GREEDY = SamplingParams(max_tokens=6, ignore_eos=True)
HIDDEN_SIZE = 72
BLOCK_SIZE = 8


def chats(num, seed, longest=20):
    """Prompts, most of which begin as an earlier one with its answer's place filled."""
    rng = random.Random(seed)
    prompts = []
    for _ in range(num):
        tail = [rng.randrange(3, 300) for _ in range(rng.randrange(1, longest))]
        head = rng.choice(prompts) if prompts and rng.random() < 0.8 else []
        prompts.append((head[: rng.randrange(16, 60)] + tail)[:70])
    return prompts


def thin(request_id, prompt, sampling=GREEDY, **more):
    return Open(
        request_id=request_id, num_prompt=len(prompt), prompt=prompt, sampling=sampling, **more
    )


def tokens_of(outputs, request_id):
    return [t.token_id for o in outputs if o.request_id == request_id for t in o.tokens]


def num_hits(engine):
    return engine.stats().num_prefix_hit_tokens_total


@pytest.mark.parametrize("num_tokens", [1024, 96])
def test_whole_equals_transformers(make_engine, greedy, num_tokens):
    engine = make_engine(num_tokens=num_tokens, max_tokens_per_step=19)
    prompts = chats(10, seed=1)
    outputs = []
    for i, prompt in enumerate(prompts):
        engine.handle(thin(str(i), prompt))
        outputs += engine.step() or []
    outputs += finish(engine)
    for i, prompt in enumerate(prompts):
        assert tokens_of(outputs, str(i)) == greedy(prompt, 6)
    assert num_hits(engine) > 50
    assert (engine.stats().num_preempted_total > 0) == (num_tokens == 96)


def test_the_first_token_says_how_much_was_cached(make_engine):
    engine = make_engine()
    assert engine.info.block_size == BLOCK_SIZE
    prompt = list(range(3, 33))
    for expected in (0, 24):
        engine.handle(thin("a", prompt))
        first, *_ = finish(engine)
        assert first.num_cached == expected
    engine.handle(thin("a", prompt, tenant="other"))
    assert finish(engine)[0].num_cached == 0
    stats = engine.stats()
    assert (stats.num_prefix_queried_tokens_total, stats.num_prefix_hit_tokens_total) == (90, 24)


def test_without_the_cache_nothing_is_found(make_engine):
    engine = make_engine(prefix_cache=False)
    assert engine.info.block_size == 0
    for _ in range(2):
        engine.handle(thin("a", list(range(3, 33))))
        assert finish(engine)[0].num_cached == 0
    assert all(segment.num_cached == 0 for segment in engine.stats().segments)


@pytest.mark.parametrize(
    "sizes",
    [(1024, 1024), (96, 1024), (1024, 96)],
    ids=["room for all", "a small tail", "a small head"],
)
@pytest.mark.parametrize("wire_id", ["float32/1", WIRE_ID])
def test_split_equals_no_cache(make_engine, greedy, request, sizes, wire_id):
    codec = request.getfixturevalue("codec") if wire_id == WIRE_ID else None
    tail, head = ({"num_tokens": n, "max_tokens_per_step": 19} for n in sizes)
    run = SplitRun(make_engine(**tail), {3: make_engine(stop=3, **head)}, wire_id)
    prompts = chats(12, seed=2)
    for i, prompt in enumerate(prompts):
        run.open(str(i), prompt, 3, GREEDY)
        # Many at once, and then few.
        for _ in range(1 if i < 6 else 9):
            run.step()
    tokens = run.run()
    # The server was not sent what it had, and had most of what the head had sent before.
    assert sum(num_kept for _, num_kept in run.reused.values()) > 50
    assert num_hits(run.tail) > 50
    preempted = [e.stats().num_preempted_total for e in (run.tail, run.heads[3])]
    assert [n > 0 for n in preempted] == [size == 96 for size in sizes]
    if codec is None:
        for i, prompt in enumerate(prompts):
            assert tokens[str(i)] == greedy(prompt, 6)
    else:
        expect_states_of_requests_alone(codec, run)


def expect_states_of_requests_alone(codec, run):
    """Both sides came to the states that each request's packets alone lead to: ``codec`` itself
    refuses a packet that leads to two."""
    for packets in filter(None, run.packets.values()):
        alone = torch.empty(len(packets), HIDDEN_SIZE)
        codec.decode(packets, alone, [Run(len(packets))])


def test_cuts_thin_clients_and_tenants_in_one_engine(make_engine, greedy):
    tail = make_engine(num_tokens=160, max_tokens_per_step=23)
    heads = {cut: make_engine(stop=cut) for cut in (1, 5)}
    run = SplitRun(tail, heads)
    prompts = chats(12, seed=3)
    for i, prompt in enumerate(prompts):
        run.open(str(i), prompt, (0, 1, 5)[i % 3], GREEDY)
        tail.handle(thin(f"other-{i}", prompt, GREEDY, tenant="other"))
        run.step()
    tokens = run.run()
    for i, prompt in enumerate(prompts):
        assert tokens[str(i)] == greedy(prompt, 6), f"cut {run.cuts[str(i)]}"
        assert tokens_of(run.others, f"other-{i}") == tokens[str(i)]


def test_a_prefix_that_is_all_known_needs_no_packet(make_engine, greedy):
    run = SplitRun(make_engine(), {3: make_engine(stop=3)})
    prompt = list(range(3, 27))
    run.open("a", prompt, 3, GREEDY)
    expected = list(run.run()["a"])
    digests = block_digests(run.packets["a"], BLOCK_SIZE)
    opening = Open(
        request_id="b",
        entry_layer=3,
        num_prompt=len(prompt),
        sampling=GREEDY,
        codec=run.codec,
        prefix=digests,
    )
    (answer,) = run.tail.handle(opening)
    assert (answer.wanted, answer.num_cached) == (24, 16)
    (report,) = run.tail.step()
    assert tokens_of([report], "b") == expected[:1]
    run.tail.handle(Cancel("b"))
