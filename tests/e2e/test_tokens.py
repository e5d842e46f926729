"""The default model in float32, cut anywhere and in any batch, says what transformers says."""

import pytest
from correctness import GREEDY, load_engine
from driving import SplitRun
from msgspec.structs import replace

pytestmark = [pytest.mark.e2e, pytest.mark.model, pytest.mark.timeout(900)]

CUTS = (1, 8, 15, 29)


@pytest.fixture(scope="module")
def split_heads():
    return {cut: load_engine(stop=cut) for cut in CUTS}


def tokens_of(tail, heads, requests, sampling=GREEDY):
    """Tokens of requests (case, cut) that run at the same time; cut 0 is not split."""
    run = SplitRun(tail, heads)
    for i, (case, cut) in enumerate(requests):
        run.open(str(i), case.prompt, cut, sampling)
    tokens = run.run()
    for engine in (tail, *heads.values()):
        stats = engine.stats()
        assert (stats.num_live, stats.held_packet_bytes) == (0, 0)
        assert all(segment.num_free == segment.num_blocks for segment in stats.segments)
    return [tokens[str(i)] for i in range(len(requests))]


def test_every_prompt_at_every_cut_in_one_batch(cases, split_heads):
    requests = [(case, cut) for case in cases for cut in (0, *CUTS)]
    got = tokens_of(load_engine(cuts=CUTS), split_heads, requests)
    for (case, cut), tokens in zip(requests, got, strict=True):
        assert tokens == case.tokens, f"prompt {cases.index(case)} at cut {cut}"


@pytest.mark.parametrize("max_tokens_per_step", [7, 37])
def test_prompts_in_odd_pieces(cases, max_tokens_per_step):
    pieces = {"max_tokens_per_step": max_tokens_per_step}
    heads = {cut: load_engine(stop=cut, **pieces) for cut in (1, 15)}
    requests = [(case, (0, 1, 15)[i % 3]) for i, case in enumerate(cases)]
    sampling = replace(GREEDY, max_tokens=32)
    got = tokens_of(load_engine(cuts=CUTS, **pieces), heads, requests, sampling)
    for (case, cut), tokens in zip(requests, got, strict=True):
        assert tokens == case.tokens[:32], f"prompt {cases.index(case)} at cut {cut}"


def test_each_alone(cases, split_heads):
    """Rows that share a pass with no others."""
    tail = load_engine(cuts=CUTS)
    for case, cut in zip(cases[3::4], (0, *CUTS), strict=True):
        got = tokens_of(tail, split_heads, [(case, cut)], replace(GREEDY, max_tokens=24))
        assert got == [case.tokens[:24]], f"at cut {cut}"
