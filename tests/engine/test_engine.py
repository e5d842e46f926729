"""Split at any cut = unsplit = transformers, token for token; and what requests may not do."""

import random

import pytest
from driving import SplitRun, finish

from sliceserve.configs import SamplingParams
from sliceserve.engine.messages import EARLY_TOKENS, AppendPackets, Cancel, Detach, Open

GREEDY = SamplingParams(max_tokens=12, ignore_eos=True)


def prompts(num, seed=0, longest=40):
    rng = random.Random(seed)
    return [[rng.randrange(3, 300) for _ in range(rng.randrange(1, longest))] for _ in range(num)]


def thin(request_id, prompt, sampling=GREEDY, **others):
    return Open(
        request_id=request_id,
        num_prompt=len(prompt),
        prompt=list(prompt),
        sampling=sampling,
        **others,
    )


def tokens_of(outputs, request_id):
    return [t.token_id for o in outputs if o.request_id == request_id for t in o.tokens]


@pytest.mark.parametrize("max_tokens_per_step", [512, 7, 1])
def test_whole_equals_transformers(make_engine, greedy, max_tokens_per_step):
    engine = make_engine(max_tokens_per_step=max_tokens_per_step)
    for i, prompt in enumerate(prompts(5)):
        engine.handle(thin(str(i), prompt))
    outputs = finish(engine)
    for i, prompt in enumerate(prompts(5)):
        assert tokens_of(outputs, str(i)) == greedy(prompt, 12)


@pytest.mark.parametrize("max_tokens_per_step", [512, 13])
def test_mixed_cuts_in_one_batch_equal_transformers(make_engine, greedy, max_tokens_per_step):
    tail = make_engine(max_tokens_per_step=max_tokens_per_step)
    heads = {c: make_engine(stop=c, max_tokens_per_step=max_tokens_per_step) for c in (1, 3, 5)}
    run = SplitRun(tail, heads)
    for i, prompt in enumerate(prompts(9, seed=1)):
        run.open(str(i), prompt, (0, 1, 3, 5)[i % 4], GREEDY)
        # Arrivals in the middle of what others compute.
        run.step()
    tokens = run.run()
    for i, prompt in enumerate(prompts(9, seed=1)):
        assert tokens[str(i)] == greedy(prompt, 12), f"request {i} at cut {run.cuts[str(i)]}"


def test_a_tail_only_server_serves_split_clients(make_engine, greedy):
    tail = make_engine(first=3, cuts=(3, 5))
    assert not tail.info.thin
    run = SplitRun(tail, {3: make_engine(stop=3), 5: make_engine(stop=5)})
    for i, prompt in enumerate(prompts(4, seed=2)):
        run.open(str(i), prompt, (3, 5)[i % 2], GREEDY)
    tokens = run.run()
    for i, prompt in enumerate(prompts(4, seed=2)):
        assert tokens[str(i)] == greedy(prompt, 12)
    (answer,) = tail.handle(thin("thin", [3, 4]))
    assert answer.error_code == "cut_not_offered"


def test_preemption_does_not_change_the_text(make_engine, greedy):
    # 12 blocks of 8 tokens: about three of the six requests at once.
    tail = make_engine(num_tokens=96)
    run = SplitRun(tail, {3: make_engine(stop=3)})
    for i, prompt in enumerate(prompts(6, seed=3, longest=24)):
        run.open(str(i), prompt, (0, 3)[i % 2], GREEDY)
    tokens = run.run()
    assert tail.stats().num_preempted_total > 0
    for i, prompt in enumerate(prompts(6, seed=3, longest=24)):
        assert tokens[str(i)] == greedy(prompt, 12)


def test_a_preempted_head_encodes_nothing_twice(make_engine, greedy):
    head = make_engine(stop=3, num_tokens=64)
    run = SplitRun(make_engine(), {3: head})
    for i, prompt in enumerate(prompts(5, seed=4, longest=24)):
        run.open(str(i), prompt, 3, GREEDY)
    # SplitRun asserts that packets follow each other without a repeat.
    tokens = run.run()
    assert head.stats().num_preempted_total > 0
    for i, prompt in enumerate(prompts(5, seed=4, longest=24)):
        assert tokens[str(i)] == greedy(prompt, 12)


def test_sampled_text_is_the_same_alone_and_in_company(make_engine):
    sampling = SamplingParams(max_tokens=12, temperature=1.0, seed=5, ignore_eos=True)
    alone = make_engine()
    alone.handle(thin("a", prompts(1)[0], sampling))
    expected = tokens_of(finish(alone), "a")
    run = SplitRun(make_engine(max_tokens_per_step=9), {1: make_engine(stop=1)})
    run.open("a", prompts(1)[0], 1, sampling)
    for i, prompt in enumerate(prompts(4, seed=6)):
        run.open(f"other-{i}", prompt, 0, SamplingParams(max_tokens=20, temperature=2.0, seed=i))
    assert run.run()["a"] == expected


def test_a_replay_elsewhere_goes_on_with_the_same_text(make_engine):
    sampling = SamplingParams(max_tokens=12, temperature=1.0, seed=5, ignore_eos=True)
    prompt = prompts(1, seed=7)[0]
    run = SplitRun(make_engine(), {3: make_engine(stop=3)})
    run.open("a", prompt, 3, sampling)
    expected = list(run.run()["a"])
    for num_done in (1, 5, 11):
        server = make_engine()
        server.handle(
            Open(
                request_id="a",
                entry_layer=3,
                num_prompt=len(prompt),
                outputs=expected[:num_done],
                sampling=sampling,
                codec="float32/1",
            )
        )
        # Position after position, as a client would; the packets are those of the first run.
        outputs = []
        for i, packet in enumerate(run.packets["a"]):
            assert server.handle(AppendPackets("a", i, [packet])) == []
            outputs += finish(server)
        assert tokens_of(outputs, "a") == expected[num_done:]


def test_repeats_are_ignored_and_gaps_answered(make_engine, greedy):
    prompt = prompts(1, seed=8, longest=20)[0]
    run = SplitRun(make_engine(), {3: make_engine(stop=3)})
    run.open("a", prompt, 3, GREEDY)
    while not run.tokens["a"]:
        run.step()
    sent = run.packets["a"]
    assert run.tail.handle(AppendPackets("a", 0, sent)) == []
    assert run.tail.handle(AppendPackets("a", len(sent) - 1, sent[-1:])) == []
    (answer,) = run.tail.handle(AppendPackets("a", len(sent) + 3, sent[-1:]))
    assert answer.wanted == len(sent)
    assert run.run()["a"] == greedy(prompt, 12)


def test_an_attached_client_hears_the_token_it_missed(make_engine, greedy):
    prompt = prompts(1, seed=9)[0]
    run = SplitRun(make_engine(), {3: make_engine(stop=3)})
    run.open("a", prompt, 3, GREEDY)
    while len(run.tokens["a"]) < 4:
        run.step()
    run.tail.handle(Detach("a"))
    assert run.tail.stats().num_detached == 1
    seen = run.tokens["a"][:3]
    (answer,) = run.tail.handle(
        Open(
            request_id="a",
            entry_layer=3,
            num_prompt=len(prompt),
            outputs=seen,
            sampling=GREEDY,
            codec="float32/1",
        )
    )
    assert answer.opened
    assert [t.token_id for t in answer.tokens] == run.tokens["a"][3:4]
    assert answer.start == len(prompt) + 3
    assert run.tail.stats().num_detached == 0
    assert run.run()["a"] == greedy(prompt, 12)


def test_a_client_that_stays_away_is_forgotten(make_engine):
    engine = make_engine(detached_timeout_s=0.0)
    engine.handle(thin("a", [3, 4, 5]))
    engine.step()
    engine.handle(Detach("a"))
    assert engine.expire() == ["a"]
    assert "a" not in engine


def test_cancel_frees_everything_at_any_time(make_engine):
    engine = make_engine(max_tokens_per_step=5)
    for i, prompt in enumerate(prompts(6, seed=10)):
        engine.handle(thin(str(i), prompt))
    for i in range(6):
        engine.handle(Cancel(str(i)))
        engine.check()
        engine.step()


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        (Open(request_id="a", num_prompt=0), "invalid_request", "at least one token"),
        (Open(request_id="a", num_prompt=3, prompt=[1]), "invalid_request", "got 1"),
        (Open(request_id="a", num_prompt=1, prompt=[300]), "invalid_request", "vocabulary of 300"),
        (
            Open(request_id="a", num_prompt=256, prompt=[5] * 256),
            "context_length_exceeded",
            "256 tokens",
        ),
        (
            Open(request_id="a", num_prompt=2, entry_layer=2, codec="float32/1"),
            "cut_not_offered",
            "0, 1, 3, 5",
        ),
        (
            Open(request_id="a", num_prompt=2, entry_layer=3, codec="zip"),
            "unsupported_codec",
            "int8/1",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_in_a_sentence(make_engine, request_, code, words):
    engine = make_engine()
    (answer,) = engine.handle(request_)
    assert answer.error_code == code
    assert words in answer.error


def test_a_full_engine_says_when_to_come_back(make_engine):
    engine = make_engine(max_requests=2)
    for i in range(2):
        engine.handle(thin(str(i), [3, 4]))
    (answer,) = engine.handle(thin("late", [3, 4]))
    assert answer.error_code == "overloaded"
    assert answer.retry_after_s > 0
    finish(engine)


def test_a_tenant_at_its_own_limit_is_told_when_its_own_have_ended(make_engine):
    engine = make_engine(max_requests=9, tenant_max_requests={"a": 1})
    engine.handle(thin("first", [3, 4], tenant="a"))
    (answer,) = engine.handle(thin("late", [3, 4], tenant="a"))
    assert "all 1 places of tenant 'a' are taken" in answer.error
    assert answer.retry_after_s > 0
    finish(engine)


def test_a_bad_packet_ends_its_request_alone(make_engine, greedy):
    engine = make_engine()
    engine.handle(Open(request_id="bad", entry_layer=3, num_prompt=2, codec="float32/1"))
    engine.handle(thin("good", [3, 4, 5]))
    (answer,) = engine.handle(AppendPackets("bad", 0, [b"nonsense"]))
    assert answer.error_code == "invalid_packet"
    assert "bad" not in engine
    assert tokens_of(finish(engine), "good") == greedy([3, 4, 5], 12)


def test_credit_is_bounded_and_never_falls(make_engine):
    engine = make_engine(credit_window=4)
    (answer,) = engine.handle(
        Open(request_id="a", entry_layer=3, num_prompt=9, codec="float32/1", sampling=GREEDY)
    )
    assert answer.credit == 4
    packet = bytes(72 * 4)
    engine.handle(AppendPackets("a", 0, [packet] * 4))
    outputs = finish(engine)
    assert outputs[-1].credit == 8
    # What may have come early is wanted again, and no other.
    (answer,) = engine.handle(AppendPackets("a", 4, [packet] * 5))
    assert (answer.wanted, answer.credit, answer.error_code) == (4, 8, None)
    (answer,) = engine.handle(AppendPackets("a", 4, [packet] * (EARLY_TOKENS - 3)))
    assert answer.error_code == "protocol_error"
    assert "credit reaches 8" in answer.error


def test_end_tokens_and_the_context_limit_end_a_request(make_engine, greedy):
    prompt = prompts(1, seed=11)[0]
    expected = greedy(prompt, 12)
    engine = make_engine()
    stop = SamplingParams(max_tokens=12, stop_token_ids=(expected[4],), ignore_eos=True)
    engine.handle(thin("stop", prompt, stop))
    engine.handle(thin("long", [7] * 250, SamplingParams(max_tokens=50, ignore_eos=True)))
    outputs = finish(engine)
    assert tokens_of(outputs, "stop") == expected[: expected.index(expected[4]) + 1]
    reasons = {o.request_id: o.finish_reason for o in outputs if o.finish_reason}
    assert reasons == {"stop": "stop", "long": "length"}
    assert len(tokens_of(outputs, "long")) == 6


def test_busy_time_is_shared_by_layers(make_engine):
    engine = make_engine()
    engine.handle(thin("thin", [3, 4]))
    engine.handle(Open(request_id="deep", entry_layer=5, num_prompt=2, codec="float32/1"))
    engine.handle(AppendPackets("deep", 0, [bytes(72 * 4)] * 2))
    outputs = {o.request_id: o for o in engine.step()}
    # Two rows through one layer against two rows through all.
    assert outputs["thin"].seconds == pytest.approx(6 * outputs["deep"].seconds)
    for request_id in outputs:
        engine.handle(Cancel(request_id))
