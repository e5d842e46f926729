"""How a server begins and ends."""

import asyncio
import os
import signal
import socket

import httpx
import pytest
import websockets
from split_peer import connect

from sliceserve.api.hosting import serve as serve_backend
from sliceserve.api.listening import ServerError, bind
from sliceserve.api.shutdown import Interrupted, Shutdown, on_hangup
from sliceserve.configs import HttpConfig
from sliceserve.configs.loading import ConfigError
from sliceserve.transport.messages import Bye, Drain, Opened

COMPLETION = {"model": "tiny", "prompt": "Hi"}


async def test_ready_tells_the_url_of_a_free_port(serve, fake):
    served = await serve(fake())
    async with httpx.AsyncClient(base_url=served.url) as client:
        assert (await client.get("/health")).json() == {"status": "ok"}
        assert (await client.get("/version")).json()["version"]
    served.shutdown.requested.set()
    await asyncio.wait_for(served.task, 10)
    assert served.task.exception() is None
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{served.url}/health")


def test_sockets_are_such_that_no_token_waits_for_an_acknowledgement():
    # asyncio sets TCP_NODELAY on sockets that say TCP of themselves, and on no others.
    with bind("127.0.0.1", 0) as sock:
        assert sock.proto == socket.IPPROTO_TCP


async def test_a_port_in_use_is_one_sentence(serve, fake, backend_of):
    served = await serve(fake())
    port = int(served.url.rsplit(":", 1)[1])
    with pytest.raises(ServerError, match=rf"127.0.0.1:{port}.*in use.*another port"):
        bind("127.0.0.1", port)
    with pytest.raises(ServerError, match=r"cannot listen on no\.such\.host\.invalid"):
        bind("no.such.host.invalid", 0)


async def test_a_port_that_is_taken_while_the_model_loads(fake, backend_of, serve):
    engine = fake()
    # Two that do not listen yet may share a port; the second to listen must hear of it.
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with bind("127.0.0.1", port) as second:
            first.listen()
            with pytest.raises(ServerError, match=f"cannot listen on 127.0.0.1:{port}"):
                await serve_backend(
                    backend_of(engine),
                    second,
                    Shutdown(),
                    engine.stop,
                    lambda url: None,
                    http=HttpConfig(),
                )


async def test_the_death_of_the_engine_ends_the_server(serve, fake):
    engine = fake()
    engine.running.clear()
    served = await serve(engine)
    async with httpx.AsyncClient(base_url=served.url, timeout=30) as client:
        live = asyncio.create_task(client.post("/v1/completions", json=COMPLETION))
        while not engine.num_generating:
            await asyncio.sleep(0.005)
        engine.die("out of smoke")
        assert (await live).json()["error"]["code"] == "engine_dead"
    with pytest.raises(ServerError, match="out of smoke"):
        await asyncio.wait_for(served.task, 10)


@pytest.mark.parametrize("again", [False, True])
async def test_what_outlives_the_drain_is_told(serve, fake, again, eventually):
    engine = fake()
    engine.running.clear()
    served = await serve(engine, drain_timeout_s=60.0 if again else 0.2)
    async with (
        httpx.AsyncClient(base_url=served.url, timeout=30) as client,
        connect(served) as peer,
    ):
        await peer.open()
        await peer.receive(Opened)
        live = asyncio.create_task(client.post("/v1/completions", json=COMPLETION))
        await eventually(lambda: engine.num_generating == 1)
        served.shutdown.requested.set()
        if again:
            served.shutdown.urgent.set()
        response = await live
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "engine_dead"
        messages = []
        with pytest.raises(websockets.ConnectionClosed):
            while True:
                messages.append(await peer.receive())
        # No Error, which would fail its requests: it can take them to another server.
        assert [type(message) for message in messages] == [Drain, Bye]
        assert peer.socket.close_code == 1001
    await asyncio.wait_for(served.task, 10)


async def test_signals_are_events():
    with Shutdown.on_signals() as shutdown:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(shutdown.requested.wait(), 5)
        assert not shutdown.urgent.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.wait_for(shutdown.urgent.wait(), 5)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


async def test_a_signal_ends_the_start():
    shutdown = Shutdown()
    cancelled = asyncio.Event()

    async def load():
        shutdown.requested.set()
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    with pytest.raises(Interrupted):
        await shutdown.guard(load())
    assert cancelled.is_set()

    async def fail():
        raise ValueError("no model")

    with pytest.raises(ValueError, match="no model"):
        await Shutdown().guard(fail())


async def test_a_hangup_reads_again_and_what_cannot_be_used_changes_nothing(caplog, eventually):
    calls = []

    def reload():
        calls.append(len(calls))
        if len(calls) == 1:
            raise ConfigError("keys.yaml: there is no setting tenant; did you mean tenants?")

    on_hangup(reload)
    try:
        os.kill(os.getpid(), signal.SIGHUP)
        await eventually(lambda: calls == [0])
        assert "nothing was changed at SIGHUP: keys.yaml" in caplog.text
        os.kill(os.getpid(), signal.SIGHUP)
        await eventually(lambda: calls == [0, 1])
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
