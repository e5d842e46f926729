"""The events of /dashboard, and who may have them."""

import asyncio
import contextlib
import json
import re

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from split_peer import connect

from sliceserve.api.dashboard import sampler as sampling
from sliceserve.api.dashboard.figures import Counts, Rates
from sliceserve.api.dashboard.readings import Readings
from sliceserve.api.dashboard.routes import _MEDIA_TYPES, _PAGE
from sliceserve.api.dashboard.sampler import Sampler
from sliceserve.transport.messages import Opened, Token


class Events:
    """What comes on one stream, checked for its form."""

    def __init__(self, response):
        self._lines = response.aiter_lines()
        self.response = response

    async def next(self):
        """The kind and the data of the next event."""
        kind, data, blank = [await anext(self._lines) for _ in range(3)]
        assert blank == ""
        return kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))

    async def sample(self, holds=lambda sample: True):
        """The next sample of which something holds."""
        while True:
            kind, data = await self.next()
            if kind == "sample" and holds(data):
                return data


@contextlib.asynccontextmanager
async def watch(url, **settings):
    async with (
        httpx.AsyncClient(base_url=url, timeout=20, **settings) as http,
        http.stream("GET", "/dashboard/events") as response,
    ):
        yield Events(response)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(sampling, "INTERVAL_S", 0.02)
    monkeypatch.setattr(Sampler.__init__, "__defaults__", (0.02,))


async def test_events_say_what_metrics_say(serve, fake):
    engine = fake("abc")
    engine.num_cached = 2
    served = await serve(engine)
    async with httpx.AsyncClient(base_url=served.url) as http, connect(served) as peer:
        request = {"model": "tiny", "prompt": "four", "max_tokens": 2}
        assert (await http.post("/v1/completions", json=request)).status_code == 200
        assert (await http.post("/v1/completions", json={**request, "n": 0})).status_code == 400
        await peer.open(num_prompt=3, max_tokens=1)
        await peer.receive(Opened)
        await peer.data(0, 3)
        await peer.receive(Token)
        async with watch(served.url) as events:
            assert events.response.headers["content-type"].startswith("text/event-stream")
            assert events.response.headers["cache-control"] == "no-cache"
            kind, about = await events.next()
            assert (kind, about["model"], about["role"]) == ("about", "tiny", "server")
            assert (about["num_layers"], about["cuts"], about["thin"]) == (6, [1, 3, 5], True)
            sample = await events.sample()
        text = (await http.get("/metrics")).text
    readings = Readings(text_string_to_metric_families(text))
    total = Rates.of(Counts.of(readings, sample["state"]["uptime"]))
    assert sample["total"] == json.loads(sampling.msgspec.json.encode(total))
    assert (total.split_tokens, total.thin_tokens, total.uplink_tokens) == (1, 2, 3)
    assert total.fp16_bytes_per_token == 2 * 8
    assert sum(total.errors.values()) == 1
    assert total.first_token.count == 2 and total.first_token.p99 is not None
    state = sample["state"]
    assert state["sessions"] == {"1": 0, "3": 1, "5": 0}
    assert state["kv"] == [{"segment": "0-6", "num_blocks": 10, "num_used": 6, "num_cached": 3}]
    assert (state["workers"], state["draining"]) == (1, False)


class Readers:
    """Counts how often the metrics were read."""

    def __init__(self):
        self.num_reads = 0
        self.error = None
        self.busy = False

    async def __call__(self):
        self.num_reads += 1
        if self.error is not None:
            raise self.error
        return None if self.busy else Readings([])


async def take(samples, count):
    return [await anext(samples) for _ in range(count)]


@pytest.fixture
async def sampler():
    readers = Readers()
    sampler = Sampler(readers, lambda: False)
    sampler.readers = readers
    yield sampler
    await sampler.close()


async def test_all_viewers_share_one_reading(sampler):
    viewers = [sampler.samples() for _ in range(20)]
    await asyncio.gather(*(take(viewer, 5) for viewer in viewers))
    assert sampler.num_viewers == 20
    assert sampler.readers.num_reads <= 7
    for viewer in viewers:
        await viewer.aclose()
    assert sampler.num_viewers == 0
    num_reads = sampler.readers.num_reads
    await asyncio.sleep(0.1)
    assert sampler.readers.num_reads == num_reads


async def test_a_newcomer_gets_what_was_seen_before(sampler):
    first = sampler.samples()
    seen = await take(first, 3)
    assert [len(sample.history) for sample in seen] == [1, 0, 0]
    second = sampler.samples()
    [sample] = await take(second, 1)
    assert [point.at for point in sample.history][:3] == [s.point.at for s in seen]
    assert sample.history[-1] == sample.point
    for viewer in (first, second):
        await viewer.aclose()
    # Of a time when nobody watched there is nothing, but what was before is kept.
    third = sampler.samples()
    [sample] = await take(third, 1)
    assert sample.history[0].at == seen[0].point.at
    await third.aclose()


async def test_what_is_old_is_forgotten(sampler, monkeypatch):
    monkeypatch.setattr(sampling, "HISTORY_S", 0.05)
    monkeypatch.setattr(sampling, "_LONG_S", 0.05)
    monkeypatch.setattr(sampling, "_SLACK_S", 0.0)
    viewer = sampler.samples()
    samples = await take(viewer, 10)
    assert samples[-1].long.seconds <= 0.05
    assert len(sampler._points) <= 4 and len(sampler._counts) <= 4
    await viewer.aclose()


async def test_a_busy_engine_is_asked_again(sampler):
    viewer = sampler.samples()
    await take(viewer, 1)
    sampler.readers.busy = True
    before = sampler.readers.num_reads
    coming = asyncio.create_task(anext(viewer))
    await asyncio.sleep(0.1)
    assert sampler.readers.num_reads > before + 1 and not coming.done()
    sampler.readers.busy = False
    await coming
    await viewer.aclose()


async def test_viewers_are_let_go_when_reading_fails(sampler, caplog):
    viewer = sampler.samples()
    await take(viewer, 1)
    sampler.readers.error = RuntimeError("a fuse blew")
    assert [sample async for sample in viewer] == []
    assert "a fuse blew" in caplog.text
    sampler.readers.error = None
    again = sampler.samples()
    await take(again, 2)
    await again.aclose()


async def test_nothing_is_left_of_viewers(serve, fake, eventually):
    served = await serve(fake())
    num_tasks = len(asyncio.all_tasks())
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(5):
            events = await stack.enter_async_context(watch(served.url))
            await events.sample()
        assert len(asyncio.all_tasks()) > num_tasks
    await eventually(lambda: len(asyncio.all_tasks()) <= num_tasks)


async def test_a_shutdown_ends_the_streams(serve, fake):
    engine = fake("abc" * 20)
    engine.pause_after = 1
    served = await serve(engine)
    body = {"model": "tiny", "prompt": "x", "max_tokens": 8}
    async with watch(served.url) as events, httpx.AsyncClient(base_url=served.url) as http:
        await events.sample()
        request = asyncio.create_task(http.post("/v1/completions", json=body))
        await events.sample(lambda sample: sample["state"]["live"] == 1)
        served.shutdown.requested.set()
        # Viewers see the drain, and hold nothing up.
        await events.sample(lambda sample: sample["state"]["draining"])
        engine.running.set()
        assert (await request).status_code == 200
        while (event := await events.next())[0] == "sample":
            pass
        assert event == ("end", {})
        await served.task


async def test_keys_are_asked_for_where_there_are_keys(serve, fake):
    served = await serve(fake(), api_keys={"schlüssel": "a"})
    async with httpx.AsyncClient(base_url=served.url) as http:
        assert (await http.get("/dashboard")).status_code == 200
        assert (await http.get("/dashboard/app.js")).status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            response = await http.get("/dashboard/events", headers=headers)
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
    async with watch(served.url, headers={"Authorization": "Bearer schlüssel".encode()}) as events:
        await events.sample()


async def test_there_need_not_be_a_dashboard(serve, fake):
    served = await serve(fake(), dashboard=False)
    async with httpx.AsyncClient(base_url=served.url) as http:
        for path in ("/dashboard", "/dashboard/events", "/dashboard/app.js"):
            assert (await http.get(path)).status_code == 404


async def test_the_page_needs_nothing_from_elsewhere(serve, fake):
    served = await serve(fake())
    assert {path.name for path in _PAGE.iterdir()} == set(_MEDIA_TYPES)
    async with httpx.AsyncClient(base_url=served.url) as http:
        html = (await http.get("/dashboard")).text
        asked = set(re.findall(r'(?:src|href)="dashboard/([^"]+)"', html))
        for name, media_type in _MEDIA_TYPES.items():
            path = "/dashboard" if name == "index.html" else f"/dashboard/{name}"
            response = await http.get(path)
            assert response.headers["content-type"].startswith(media_type)
            policy = response.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy
            asked |= set(re.findall(r'from "\./([^"]+)"', response.text))
            elsewhere = set(re.findall(r"https?://[^\s\"'`<]+", response.text))
            assert elsewhere <= {"http://www.w3.org/2000/svg"}
            assert " style=" not in response.text and " onclick=" not in response.text
        assert asked == set(_MEDIA_TYPES) - {"index.html"}
        assert (await http.get("/dashboard/")).headers["location"] == "../dashboard"
        assert (await http.get("/dashboard/..%2froutes.py")).status_code == 404
