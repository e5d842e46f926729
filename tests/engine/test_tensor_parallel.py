"""Engines of two ranks: the tokens of one, and an end with a reason when a rank is lost."""

import os
import random
import signal
from contextlib import closing
from dataclasses import replace

import psutil
import pytest
import torch
from driving import SplitRun, finish

from sliceserve.configs import (
    CacheConfig,
    EngineConfig,
    LayerConfig,
    ModelConfig,
    SamplingParams,
)
from sliceserve.engine.build import build_engine
from sliceserve.engine.client import EngineDead
from sliceserve.engine.messages import Cancel, Open
from sliceserve.engine.parallel import RanksLost, _Follower
from sliceserve.engine.process import EngineProcess
from sliceserve.models.errors import ModelError

GREEDY = SamplingParams(max_tokens=12, ignore_eos=True)


def prompts(num, seed):
    rng = random.Random(seed)
    return [[rng.randrange(3, 300) for _ in range(rng.randrange(1, 24))] for _ in range(num)]


def followers(pid):
    """The ranks below a process, which may have started servers for other tests too."""
    children = psutil.Process(pid).children(recursive=True)
    return [child for child in children if "sliceserve.engine.follower" in child.cmdline()]


def expect_gone(processes):
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert alive == []


def test_a_whole_model_under_mixed_cuts_chunks_and_preemption(make_engine, greedy):
    # 12 blocks of 8 tokens are about three requests at once.
    tail = make_engine(num_tokens=96, max_tokens_per_step=13, tensor_parallel=2)
    ranks = followers(os.getpid())
    assert len(ranks) == 1
    run = SplitRun(tail, {cut: make_engine(stop=cut) for cut in (1, 3)})
    for i, prompt in enumerate(prompts(8, seed=3)):
        run.open(str(i), prompt, (0, 1, 3)[i % 3], GREEDY)
        run.step()
    tokens = run.run()
    assert tail.stats().num_preempted_total > 0
    for i, prompt in enumerate(prompts(8, seed=3)):
        assert tokens[str(i)] == greedy(prompt, 12), f"request {i} at cut {run.cuts[str(i)]}"
    tail.close()
    expect_gone(ranks)


def test_a_tail_loses_its_rank(make_engine, greedy):
    tail = make_engine(first=3, cuts=(3, 5), tensor_parallel=2)
    run = SplitRun(tail, {3: make_engine(stop=3), 5: make_engine(stop=5)})
    for i, prompt in enumerate(prompts(4, seed=2)):
        run.open(str(i), prompt, (3, 5)[i % 2], GREEDY)
    tokens = run.run()
    for i, prompt in enumerate(prompts(4, seed=2)):
        assert tokens[str(i)] == greedy(prompt, 12)

    ranks = followers(os.getpid())
    run.open("late", [3, 4, 5], 3, GREEDY)
    os.kill(ranks[0].pid, signal.SIGKILL)
    with pytest.raises(RanksLost, match="rank 1 ended unexpectedly with exit code -9"):
        run.run()
    expect_gone(ranks)
    tail.handle(Cancel("late"))
    run.end_head("late")


@pytest.fixture
def config(tiny_model):
    path, _ = tiny_model
    return EngineConfig(
        model=ModelConfig(model=str(path), dtype="float32", device="cpu"),
        layers=LayerConfig(cuts=(1, 3, 5)),
        cache=CacheConfig(num_tokens=1024, block_size=8),
        profiles="off",
        tensor_parallel=2,
    )


async def test_an_idle_engine_ends_with_its_rank(config):
    engine = EngineProcess(config)
    await engine.start()
    ranks = followers(engine.pid)
    os.kill(ranks[0].pid, signal.SIGKILL)
    with pytest.raises(EngineDead, match="rank 1 ended unexpectedly with exit code -9"):
        # As the server does, once a second.
        while True:
            await engine.stats()
    await engine.stop()
    expect_gone(ranks)


async def test_no_rank_outlives_its_engine(config):
    engine = EngineProcess(config)
    await engine.start()
    ranks = followers(engine.pid)
    assert len(ranks) == 1
    os.kill(engine.pid, signal.SIGKILL)
    expect_gone(ranks)
    await engine.stop()


def test_a_rank_that_fails_says_why():
    follower = _Follower(1, b"nonsense")
    follower.expect_ready()
    assert follower.wait().startswith("ended: ")


def test_ranks_that_do_not_divide_the_heads_are_refused(make_engine):
    with pytest.raises(ModelError, match="6 attention heads and 2 KV heads, which take 1, 2, 6"):
        make_engine(tensor_parallel=3)


def test_more_ranks_than_gpus_are_refused(config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    config = replace(config, model=replace(config.model, device="cuda"))
    with pytest.raises(ModelError, match="needs a GPU for each rank, but torch sees 1"):
        build_engine(config)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_choose_the_same_tokens(config, greedy):
    config = replace(config, model=replace(config.model, device="cuda"))
    with closing(build_engine(config)) as engine:
        prompt = prompts(1, seed=4)[0]
        engine.handle(Open(request_id="a", num_prompt=len(prompt), prompt=prompt, sampling=GREEDY))
        tokens = [token.token_id for output in finish(engine) for token in output.tokens]
        ranks = followers(os.getpid())
    assert tokens == greedy(prompt, 12)
    expect_gone(ranks)
