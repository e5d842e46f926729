"""What /metrics says."""

import os
import subprocess
import sys

import httpx
from prometheus_client.multiprocess import mark_process_dead
from prometheus_client.parser import text_string_to_metric_families
from split_peer import connect

from sliceserve.transport.messages import Opened, Token


async def scrape(client):
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return samples(response.text)


def samples(text):
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_thin_requests_are_counted_and_timed(serve, fake):
    engine = fake("abc")
    engine.num_cached = 3
    served = await serve(engine)
    async with httpx.AsyncClient(base_url=served.url) as client:
        request = {"model": "tiny", "prompt": "four", "max_tokens": 2, "n": 2}
        assert (await client.post("/v1/completions", json=request)).status_code == 200
        await client.post("/v1/completions", json={**request, "max_tokens": 9, "n": 1})
        await client.post("/v1/completions", json={**request, "prompt": []})
        values = await scrape(client)
    assert values["sliceserve:prompt_tokens_total", "thin"] == 8
    assert values["sliceserve:prompt_tokens_cached_total", "thin"] == 6
    assert values["sliceserve:generation_tokens_total", "thin"] == 2 + 2 + 4
    assert values["sliceserve:request_success_total", "length", "thin"] == 2
    assert values["sliceserve:request_success_total", "stop", "thin"] == 1
    assert values["sliceserve:time_to_first_token_seconds_count", "thin"] == 3
    assert values["sliceserve:inter_token_latency_seconds_count", "thin"] == 1 + 1 + 3
    assert values["sliceserve:e2e_request_latency_seconds_count", "thin"] == 3


async def test_split_traffic_is_counted(serve, fake):
    engine = fake("abc")
    engine.num_cached = 2
    served = await serve(engine)
    async with httpx.AsyncClient(base_url=served.url) as client:
        async with connect(served) as peer:
            before = await scrape(client)
            await peer.open(num_prompt=3, max_tokens=1)
            await peer.receive(Opened)
            await peer.data(0, 3)
            await peer.receive(Token)
            values = await scrape(client)
        for cut, num_open in (("1", 0), ("3", 1), ("5", 0)):
            assert before["sliceserve:split_sessions", cut] == num_open
        assert before["sliceserve:split_uplink_packets_total",] == 0
        assert values["sliceserve:split_uplink_packets_total",] == 3
        sent = values["sliceserve:split_uplink_bytes_total",]
        assert sent > before["sliceserve:split_uplink_bytes_total",] > 0
        assert values["sliceserve:split_downlink_bytes_total",] > 0
        assert values["sliceserve:prompt_tokens_total", "split"] == 3
        assert values["sliceserve:prompt_tokens_cached_total", "split"] == 2
        assert values["sliceserve:request_success_total", "length", "split"] == 1


async def test_the_engine_is_asked_at_the_scrape(serve, fake):
    served = await serve(fake())
    async with httpx.AsyncClient(base_url=served.url) as client:
        values = await scrape(client)
    assert values["sliceserve:num_requests_running",] == 0
    assert values["sliceserve:num_preemptions_total",] == 3
    assert values["sliceserve:engine_busy_seconds_total",] == 1.5
    assert values["sliceserve:kv_cache_usage_perc", "0-6"] == 0.6
    for state, num_blocks in (("used", 6), ("cached", 3), ("empty", 1)):
        assert values["sliceserve:kv_cache_blocks", "0-6", state] == num_blocks


async def test_apps_do_not_share_their_counts(serve, fake):
    first, second = await serve(fake()), await serve(fake())
    async with httpx.AsyncClient() as client:
        request = {"model": "tiny", "prompt": "x"}
        assert (await client.post(f"{first.url}/v1/completions", json=request)).status_code == 200
        text = (await client.get(f"{second.url}/metrics")).text
    assert "sliceserve:generation_tokens_total{" not in text


_COUNT_AND_EXPOSE = """
import sys
from sliceserve.api.metrics import Metrics, RequestTimer
metrics = Metrics()
metrics.split_sessions.labels(3).inc()
metrics.count_uplink(100)
timer = RequestTimer(metrics, "split", 5)
timer.token(0)
timer.token(0)
timer.finish("stop")
print(metrics.expose(None).decode(), flush=True)
sys.stdin.read()
"""


def test_processes_that_share_a_folder_count_together(tmp_path):
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    texts, processes = [], []
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", _COUNT_AND_EXPOSE],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        lines = iter(process.stdout.readline, "\n")
        texts.append("".join(lines))
        processes.append(process)
        if len(processes) == 2:
            # One dies: what it has counted stays, its connections do not.
            processes[0].kill()
            processes[0].wait()
            mark_process_dead(processes[0].pid, tmp_path)
    for process in processes:
        process.kill()
        process.communicate()
    for num_counted, num_open, text in zip((1, 2, 3), (1, 2, 2), texts, strict=True):
        values = samples(text)
        assert (
            values["sliceserve:split_sessions", "3"]
            == values["sliceserve:api_workers",]
            == num_open
        )
        assert values["sliceserve:split_uplink_bytes_total",] == num_counted * 106
        assert values["sliceserve:generation_tokens_total", "split"] == num_counted * 2
        assert values["sliceserve:request_success_total", "split", "stop"] == num_counted
        assert values["sliceserve:time_to_first_token_seconds_count", "split"] == num_counted
    started = [samples(text)["sliceserve:start_time_seconds",] for text in texts]
    assert started[0] == max(started) == min(started)
    assert "# HELP sliceserve:split_sessions Open split connections, by" in texts[-1]
