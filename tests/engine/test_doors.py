"""Both doors to an engine behave alike: a thread of this process, a process behind ZeroMQ."""

import asyncio
import os
import signal

import pytest

from sliceserve.configs import CacheConfig, EngineConfig, LayerConfig, ModelConfig, SamplingParams
from sliceserve.engine.client import EngineDead
from sliceserve.engine.generation import GenerationError, ThinGenerator
from sliceserve.engine.in_process import InProcessEngine
from sliceserve.engine.messages import AppendPackets, Cancel, Detach, Open

pytest_asyncio = pytest.importorskip("pytest_asyncio")
process = pytest.importorskip("sliceserve.engine.process", exc_type=ImportError)
EngineProcess, RemoteEngine = process.EngineProcess, process.RemoteEngine

GREEDY = SamplingParams(max_tokens=8, ignore_eos=True)


@pytest.fixture
def config(tiny_model):
    path, _ = tiny_model
    return EngineConfig(
        model=ModelConfig(model=str(path), dtype="float32", device="cpu"),
        layers=LayerConfig(cuts=(1, 3)),
        cache=CacheConfig(num_tokens=512),
        profiles="off",
    )


@pytest_asyncio.fixture(params=[InProcessEngine, EngineProcess])
async def engine(request, config):
    engine = request.param(config)
    await engine.start()
    yield engine
    await engine.stop()


async def collect(generator, prompt, sampling=GREEDY):
    return [step.token.token_id async for step in generator.generate(prompt, sampling)]


async def nothing_left(engine):
    for _ in range(200):
        stats = await engine.stats()
        if stats.num_live == 0:
            assert all(s.num_free == s.num_blocks for s in stats.segments)
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"requests are left: {stats}")


async def test_many_requests_at_once(engine, greedy):
    generator = ThinGenerator(engine)
    prompts = [[5 + i, 6, 7] for i in range(6)]
    answers = await asyncio.gather(*(collect(generator, p) for p in prompts))
    assert answers == [greedy(p, 8) for p in prompts]
    await nothing_left(engine)


async def test_closing_a_generator_cancels(engine):
    long = SamplingParams(max_tokens=200, ignore_eos=True)
    tokens = ThinGenerator(engine).generate([5, 6], long)
    await tokens.__anext__()
    await tokens.aclose()
    await nothing_left(engine)


async def test_refusals_are_errors_of_the_generator(engine):
    with pytest.raises(GenerationError, match="256") as caught:
        await collect(ThinGenerator(engine), [5] * 300)
    assert caught.value.code == "context_length_exceeded"
    await nothing_left(engine)


async def test_a_request_moves_to_the_stream_that_opened_it_last(engine):
    request = Open(request_id="a", entry_layer=3, num_prompt=2, codec="float32/1", sampling=GREEDY)
    first = engine.open(request)
    assert (await first.__anext__()).opened
    engine.send(AppendPackets("a", 0, [bytes(288)]))
    engine.send(Detach("a"))
    second = engine.open(request)
    answer = await second.__anext__()
    assert answer.opened
    assert answer.wanted == 1
    assert all(output.tokens == [] for output in [o async for o in first])
    engine.send(AppendPackets("a", 1, [bytes(288)]))
    while not (output := await second.__anext__()).tokens:
        pass
    assert output.start == 2
    engine.send(Cancel("a"))
    await nothing_left(engine)


async def test_a_model_that_cannot_load_says_why(config):
    broken = EngineConfig(model=ModelConfig(model="/nowhere/model"))
    for door in (InProcessEngine(broken), EngineProcess(broken)):
        with pytest.raises(EngineDead, match="/nowhere/model"):
            await door.start()
        await door.stop()


async def test_all_who_ask_a_model_that_cannot_load_learn_why():
    owner = EngineProcess(EngineConfig(model=ModelConfig(model="/nowhere/model")))
    others = [RemoteEngine(owner.address, b"peer-%d" % i) for i in range(2)]
    starts = [door.start() for door in (*others, owner)]
    for failure in await asyncio.gather(*starts, return_exceptions=True):
        assert isinstance(failure, EngineDead)
        assert "/nowhere/model" in str(failure)
    for door in (*others, owner):
        await door.stop()


async def test_a_dead_process_is_noticed_by_all_who_wait(config):
    engine = EngineProcess(config)
    await engine.start()
    tokens = ThinGenerator(engine).generate([5], SamplingParams(max_tokens=240, ignore_eos=True))
    await tokens.__anext__()
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(EngineDead, match="ended unexpectedly"):
        async for _ in tokens:
            pass
    with pytest.raises(EngineDead):
        await engine.stats()
    await engine.stop()


async def test_several_processes_may_share_an_engine(config, greedy):
    owner = EngineProcess(config)
    await owner.start()
    other = RemoteEngine(owner.address)
    assert (await other.start()) == owner.info
    answers = await asyncio.gather(
        *(collect(ThinGenerator(e), [9 + i]) for i, e in enumerate((owner, other, owner, other)))
    )
    assert answers == [greedy([9 + i], 8) for i in range(4)]
    await other.stop()
    await nothing_left(owner)
    await owner.stop()
