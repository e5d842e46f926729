"""Workers that die, come back, and end together; and what a real one says when it cannot start."""

import asyncio
import contextlib
import math
import socket

import pytest

from sliceserve.api.listening import ServerError
from sliceserve.api.server import start, until_stopped
from sliceserve.api.shutdown import Shutdown
from sliceserve.api.supervisor import Patience, Supervisor
from sliceserve.api.worker_process import Drain, End, WorkerProcess
from sliceserve.configs import ServerConfig
from sliceserve.engine.messages import EngineFailed

SETTLED = Patience(settled_s=0.0)
EARLY = Patience(settled_s=math.inf, pause_s=0.0, max_early=3)


class FakeWorker:
    """``stubborn`` ones hear no orders."""

    def __init__(self, stubborn=False):
        self.orders = []
        self.killed = False
        self.serves = asyncio.Event()
        self.end = asyncio.get_running_loop().create_future()
        self._stubborn = stubborn

    async def ready(self):
        await self.serves.wait()

    async def ended(self):
        return await asyncio.shield(self.end)

    def die(self, how="killed"):
        if not self.end.done():
            self.end.set_result(how)

    def order(self, order):
        self.orders.append(order)
        if isinstance(order, End) and not self._stubborn:
            self.die("as told")

    def kill(self):
        self.killed = True
        self.die()


class Scene:
    def __init__(self, patience, num_workers=2, **settings):
        self.made = []
        self.buried = []

        async def spawn():
            self.made.append(FakeWorker(**settings))
            return self.made[-1]

        self.supervisor = Supervisor(num_workers, spawn, self.buried.append, patience)


@contextlib.asynccontextmanager
async def kept(patience, **settings):
    """A scene whose supervisor has started, and keeps its workers."""
    scene = Scene(patience, **settings)
    await scene.supervisor.start()
    scene.keeping = asyncio.create_task(scene.supervisor.keep())
    try:
        yield scene
    finally:
        scene.keeping.cancel()
        await asyncio.gather(scene.keeping, return_exceptions=True)


async def test_it_is_ready_when_all_are():
    scene = Scene(SETTLED, num_workers=3)
    await scene.supervisor.start()
    ready = asyncio.create_task(scene.supervisor.ready())
    for worker in scene.made:
        await asyncio.sleep(0)
        assert not ready.done()
        worker.serves.set()
    await asyncio.wait_for(ready, 5)


async def test_one_that_dies_is_buried_and_replaced_alone(eventually):
    async with kept(SETTLED) as scene:
        first, second = scene.made
        # More often than there is patience with those that never settle.
        for num_deaths in range(1, 8):
            scene.made[0 if num_deaths == 1 else -1].die()
            await eventually(lambda n=num_deaths: len(scene.made) == 2 + n)
        assert scene.buried == [first, *scene.made[2:-1]]
        assert second not in scene.buried
        assert not second.orders


async def test_after_early_deaths_in_a_row_it_gives_up(eventually):
    async with kept(EARLY) as scene:
        scene.made[1].die("a reason")
        await eventually(lambda: len(scene.made) == 3)
        scene.made[2].die("another")
        await eventually(lambda: len(scene.made) == 4)
        scene.made[3].die("the last reason")
        with pytest.raises(ServerError, match=r"3 API workers in a row .*: the last reason"):
            await asyncio.wait_for(scene.keeping, 5)
        assert scene.buried == scene.made[1:]
        assert not scene.made[0].end.done()


async def test_each_early_death_is_followed_by_a_longer_pause(monkeypatch, eventually):
    pauses = []
    real = asyncio.sleep

    async def sleep(seconds):
        if seconds >= 1.0:
            pauses.append(seconds)
        await real(0)

    monkeypatch.setattr("sliceserve.api.supervisor.asyncio.sleep", sleep)
    async with kept(Patience(settled_s=math.inf, pause_s=1.0, max_early=4), num_workers=1) as scene:
        for num_deaths in range(1, 4):
            scene.made[-1].die()
            await eventually(lambda n=num_deaths: len(scene.made) == 1 + n)
    assert pauses == [1.0, 2.0, 4.0]


async def test_a_drain_lets_all_finish_and_replaces_nobody(eventually):
    async with kept(SETTLED) as scene:
        scene.keeping.cancel()
        draining = asyncio.create_task(scene.supervisor.drain())
        await eventually(lambda: all(w.orders == [Drain()] for w in scene.made))
        scene.made[0].die("drained")
        await asyncio.sleep(0)
        assert not draining.done()
        scene.made[1].die("drained")
        await asyncio.wait_for(draining, 5)
        assert len(scene.made) == 2
        assert not any(worker.killed for worker in scene.made)


@pytest.mark.parametrize("stubborn", [False, True])
async def test_stop_ends_all_those_that_do_not_listen_by_force(stubborn, monkeypatch):
    monkeypatch.setattr("sliceserve.api.supervisor._END_TIMEOUT_S", 0.05)
    scene = Scene(SETTLED, stubborn=stubborn)
    await scene.supervisor.start()
    for _ in range(2):
        await asyncio.wait_for(scene.supervisor.stop(), 5)
    assert all(worker.end.done() for worker in scene.made)
    assert all(worker.killed == stubborn for worker in scene.made)


async def test_an_engine_that_dies_while_workers_start_is_noticed(fake, monkeypatch):
    monkeypatch.setattr("sliceserve.engine.client._WATCH_INTERVAL_S", 0.01)
    scene, engine = Scene(EARLY), fake()
    starting = asyncio.create_task(start(engine, scene.supervisor))
    await asyncio.sleep(0.05)
    assert len(scene.made) == 2 and not starting.done()
    engine.die("out of smoke")
    with pytest.raises(ServerError, match="the engine cannot start: out of smoke"):
        await asyncio.wait_for(starting, 5)


@contextlib.asynccontextmanager
async def serving(fake, drain_timeout_s=60.0):
    """A server of two fake workers before a fake engine."""
    scene = Scene(EARLY)
    scene.engine, scene.shutdown = fake(), Shutdown()
    await scene.supervisor.start()
    scene.task = asyncio.create_task(
        until_stopped(scene.engine, scene.supervisor, scene.shutdown, drain_timeout_s)
    )
    try:
        yield scene
    finally:
        scene.task.cancel()
        await asyncio.gather(scene.task, return_exceptions=True)


async def test_a_signal_drains_and_a_second_one_ends_the_wait(fake, eventually):
    async with serving(fake) as scene:
        scene.shutdown.requested.set()
        await eventually(lambda: all(w.orders == [Drain()] for w in scene.made))
        scene.made[0].die("drained")
        await asyncio.sleep(0)
        assert not scene.task.done()
        scene.shutdown.urgent.set()
        await asyncio.wait_for(scene.task, 5)
    assert len(scene.made) == 2


async def test_a_worker_that_never_drains_is_not_waited_for(fake, monkeypatch):
    monkeypatch.setattr("sliceserve.api.server._DRAIN_MARGIN_S", 0.0)
    async with serving(fake, drain_timeout_s=0.05) as scene:
        scene.shutdown.requested.set()
        await asyncio.wait_for(scene.task, 5)


@pytest.mark.parametrize("draining", [False, True])
async def test_workers_learn_why_the_engine_died(fake, draining, eventually, monkeypatch):
    monkeypatch.setattr("sliceserve.engine.client._WATCH_INTERVAL_S", 0.01)
    async with serving(fake) as scene:
        if draining:
            scene.shutdown.requested.set()
            await eventually(lambda: scene.made[0].orders)
        scene.engine.die("out of smoke")
        with pytest.raises(ServerError, match="the engine has died: out of smoke"):
            await asyncio.wait_for(scene.task, 5)
        assert all(worker.orders[-1] == EngineFailed("out of smoke") for worker in scene.made)


async def test_workers_that_never_settle_end_the_server(fake, eventually):
    async with serving(fake) as scene:
        for num_made in range(2, 5):
            await eventually(lambda n=num_made: len(scene.made) == n)
            scene.made[-1].die("no luck")
        with pytest.raises(ServerError, match="no luck"):
            await asyncio.wait_for(scene.task, 5)


async def spawn_worker(tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"ipc://{tmp_path}/nobody"
        return await WorkerProcess.spawn(ServerConfig(), address, listener, str(tmp_path))


async def test_a_real_worker_ends_when_the_engine_does(tmp_path):
    worker = await spawn_worker(tmp_path)
    worker.order(EngineFailed("out of smoke"))
    with pytest.raises(ServerError, match="an API worker cannot start: out of smoke"):
        await worker.ready()
    assert await worker.ended() == "out of smoke"
    # Past telling.
    worker.order(Drain())
    worker.kill()


async def test_real_workers_end_when_told_when_killed_and_with_their_server(tmp_path):
    told, killed, left = [await spawn_worker(tmp_path) for _ in range(3)]
    told.order(End())
    killed.kill()
    # As when the server dies.
    left._process.stdin.close()
    ends = await asyncio.gather(told.ended(), killed.ended(), left.ended())
    assert ends == ["exit code 0", "killed by SIGKILL", "exit code 1"]
    assert len({worker.peer for worker in (told, killed, left)}) == 3
