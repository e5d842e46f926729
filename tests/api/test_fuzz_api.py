"""Hostile requests and messages, for a moment; benchmarks/fuzz_api.py goes on as long as wanted."""

import importlib.util
import itertools
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
HIDDEN_SIZE = 48


@pytest.fixture(scope="module")
def fuzzer():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("fuzz_api", BENCHMARKS / "fuzz_api.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["fuzz_api"] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(BENCHMARKS))


async def test_nothing_breaks_and_nothing_is_left(fuzzer, serve, make_engine, monkeypatch):
    # Clients that go away soon leave more behind.
    monkeypatch.setattr(fuzzer, "PATIENCE_S", 0.3)
    engine = await make_engine(detached_timeout_s=0.5)
    served = await serve(engine)
    place = await fuzzer.place_of(served.url, "none", HIDDEN_SIZE)
    attacks = itertools.count()
    tally = await fuzzer.fuzz(place, seed=1, num_clients=4, go_on=lambda: next(attacks) < 120)
    assert tally.broken == []
    # It was no shadow-boxing: some got through, and some were refused.
    assert {"200", "400"} <= tally.answers.keys()
    assert tally.num_good > 0
    assert (await engine.stats()).num_live == 0


async def test_a_broken_promise_is_seen(fuzzer, serve, fake, monkeypatch):
    engine = fake("Hello", hidden_size=HIDDEN_SIZE)
    engine.fail_after = 0
    served = await serve(engine)
    place = await fuzzer.place_of(served.url, "none", HIDDEN_SIZE)
    tally = fuzzer.Tally()
    for seed in range(100):
        await fuzzer.attack_http(place, fuzzer.random.Random(seed), tally)
    assert tally.answers["500"] > 0
    assert len(tally.broken) >= tally.answers["500"]
