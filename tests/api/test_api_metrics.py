"""What /metrics says."""

import os
import subprocess
import sys

import httpx
import pytest
from prometheus_client.multiprocess import mark_process_dead
from prometheus_client.parser import text_string_to_metric_families
from split_peer import connect

from sliceserve.api.metrics import Metrics, RequestTimer
from sliceserve.engine.messages import Cancel
from sliceserve.transport import messages as wire
from sliceserve.transport.messages import Error, Opened, Times, Token


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
    assert values["sliceserve:prompt_tokens_total", "default", "thin"] == 8
    assert values["sliceserve:prompt_tokens_cached_total", "thin"] == 6
    assert values["sliceserve:generation_tokens_total", "default", "thin"] == 2 + 2 + 4
    assert values["sliceserve:request_success_total", "default", "length", "thin"] == 2
    assert values["sliceserve:request_success_total", "default", "stop", "thin"] == 1
    assert values["sliceserve:time_to_first_token_seconds_count", "default", "thin"] == 3
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
        assert before["sliceserve:split_uplink_tokens_total",] == 0
        assert values["sliceserve:split_uplink_tokens_total",] == 3
        sent = values["sliceserve:split_uplink_bytes_total",]
        assert sent > before["sliceserve:split_uplink_bytes_total",] > 0
        assert values["sliceserve:split_downlink_bytes_total",] > 0
        assert values["sliceserve:prompt_tokens_total", "default", "split"] == 3
        assert values["sliceserve:prompt_tokens_cached_total", "split"] == 2
        assert values["sliceserve:request_success_total", "default", "length", "split"] == 1


async def test_the_engine_is_asked_at_the_scrape(serve, fake):
    served = await serve(fake())
    async with httpx.AsyncClient(base_url=served.url) as client:
        values = await scrape(client)
    assert values["sliceserve:num_requests_running",] == 0
    assert values["sliceserve:num_preemptions_total",] == 3
    assert values["sliceserve:engine_busy_seconds_total",] == 1.5
    assert values["sliceserve:kv_cache_usage_perc", "0-6"] == 0.6
    for name, num_blocks in (("kv_blocks", 10), ("kv_blocks_used", 6), ("kv_blocks_cached", 3)):
        assert values[f"sliceserve:{name}", "0-6"] == num_blocks


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
timer = RequestTimer(metrics, "split", "default", 5)
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
        assert values["sliceserve:split_sessions", "3"] == num_open
        assert values["sliceserve:api_workers",] == num_open
        assert values["sliceserve:split_uplink_bytes_total",] == num_counted * 106
        of_split = ("default", "split")
        assert values[("sliceserve:generation_tokens_total", *of_split)] == num_counted * 2
        assert values[("sliceserve:request_success_total", *of_split, "stop")] == num_counted
        assert values[("sliceserve:time_to_first_token_seconds_count", *of_split)] == num_counted
    started = [samples(text)["sliceserve:start_time_seconds",] for text in texts]
    assert started[0] == max(started) == min(started)
    assert "# HELP sliceserve:split_sessions Open split connections, by" in texts[-1]


async def test_split_packets_are_counted_against_fp16(serve, fake):
    served = await serve(fake("abc"))
    async with httpx.AsyncClient(base_url=served.url) as client, connect(served) as peer:
        await peer.open(num_prompt=3, max_tokens=1)
        await peer.receive(Opened)
        await peer.data(0, 3)
        await peer.receive(Token)
        values = await scrape(client)
    # Eight elements of two bytes each.
    assert values["sliceserve:split_uplink_fp16_bytes_total",] == 3 * 8 * 2


async def test_errors_are_counted_by_code_and_refusals_for_want_of_room_besides(serve, fake):
    engine = fake("abc")
    served = await serve(engine, api_keys={"sesame": "a"})
    headers = {"Authorization": "Bearer sesame"}
    body = {"model": "tiny", "prompt": "x"}
    async with httpx.AsyncClient(base_url=served.url, headers=headers) as client:
        await client.post("/v1/completions", json=body, headers={"Authorization": "Bearer no"})
        await client.get("/v1/nowhere")
        await client.post("/v1/completions", json={**body, "model": "other"})
        engine.fail_after = 1
        await client.post("/v1/completions", json={**body, "stream": True})
        engine.refusal = ("overloaded", "full", 3.0)
        await client.post("/v1/completions", json=body)
        async with connect(served, headers) as peer:
            await peer.open()
            await peer.receive(Error)
            await peer.send(b"\xff")
            await peer.receive(Error)
        values = await scrape(client)
    errors = {
        key[1:]: value
        for key, value in values.items()
        if key[0] == "sliceserve:request_errors_total"
    }
    assert errors == {
        ("invalid_api_key", "thin"): 1,
        ("not_found", "thin"): 1,
        ("model_not_found", "thin"): 1,
        ("internal_error", "thin"): 1,
        ("overloaded", "thin"): 1,
        ("overloaded", "split"): 1,
        ("protocol_error", "split"): 1,
    }
    rejected = {key[1:] for key in values if key[0] == "sliceserve:requests_rejected_total"}
    assert rejected == {("overloaded", "thin"), ("overloaded", "split")}


def test_codes_do_not_grow_without_end():
    metrics = Metrics()
    for i in range(300):
        metrics.count_error("thin", f"code_{i}", may_retry=False)
    values = samples(metrics.expose(None).decode())
    codes = {key[1] for key in values if key[0] == "sliceserve:request_errors_total"}
    assert len(codes) == 101
    assert values["sliceserve:request_errors_total", "other", "thin"] == 200


async def test_requests_that_their_clients_leave_are_aborted(serve, fake, eventually):
    engine = fake("abcdef")
    engine.running.clear()
    served = await serve(engine)
    async with httpx.AsyncClient(base_url=served.url) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/v1/completions", json={"model": "tiny", "prompt": "x"}, timeout=0.2)
        await eventually(lambda: engine.sent(Cancel))
        async with connect(served) as peer:
            await peer.open()
            await peer.receive(Opened)
            await peer.send(wire.Cancel(request_id=1))
            await peer.send(wire.Cancel(request_id=1))
            await peer.open(request_id=2)
            await peer.receive(Opened)
            await peer.send(wire.Bye())
            await peer.closed()
        values = await scrape(client)
    assert values["sliceserve:request_success_total", "abort", "default", "thin"] == 1
    assert values["sliceserve:request_success_total", "abort", "default", "split"] == 2
    assert ("sliceserve:request_errors_total", "client_closed_request", "thin") not in values


async def test_tenants_beyond_the_most_are_others():
    metrics = Metrics(["default", "a"])
    for tenant in ("a", "b", "c"):
        timer = RequestTimer(metrics, "thin", tenant, 5)
        timer.token(0)
        timer.finish("stop")
    values = samples(metrics.expose(None).decode())
    assert values["sliceserve:prompt_tokens_total", "a", "thin"] == 5
    assert values["sliceserve:prompt_tokens_total", "other", "thin"] == 10
    assert values["sliceserve:time_to_first_token_seconds_count", "other", "thin"] == 2
    assert values["sliceserve:request_success_total", "other", "stop", "thin"] == 2


async def test_a_request_that_comes_back_is_not_a_new_one():
    metrics = Metrics()
    timer = RequestTimer(metrics, "split", "default", 5, resumed=True)
    timer.token(0)
    timer.token(0)
    timer.finish("length")
    values = samples(metrics.expose(None).decode())
    assert ("sliceserve:time_to_first_token_seconds_count", "default", "split") not in values
    assert ("sliceserve:prompt_tokens_total", "default", "split") not in values
    assert values["sliceserve:generation_tokens_total", "default", "split"] == 2
    assert values["sliceserve:inter_token_latency_seconds_count", "split"] == 1


def told(values, part):
    names = ("token_time_seconds_total", "token_time_tokens_total")
    return tuple(values.get((f"sliceserve:{name}", part, "split"), 0.0) for name in names)


async def test_a_client_is_believed_about_the_tokens_that_it_was_sent(serve, fake):
    served = await serve(fake("abcdef"))
    async with httpx.AsyncClient(base_url=served.url) as client, connect(served) as peer:
        await peer.open(num_prompt=1)
        await peer.receive(Opened)
        for position in range(3):
            await peer.data(position, 1)
            await peer.receive(Token)
        await peer.send(Times(num_tokens=2, head_us=300, encode_us=20, link_us=5000))
        # One more was sent, and it took no longer than a minute.
        await peer.send(Times(num_tokens=2**32 - 1, head_us=2**53 - 1, link_us=1))
        # None is left.
        await peer.send(Times(num_tokens=5, head_us=70_000_000))
        await peer.send(wire.Cancel(request_id=1))
        await peer.open(request_id=2)
        await peer.receive(Opened)
        values = await scrape(client)
    assert told(values, "head") == (pytest.approx(60.0003), 3)
    assert told(values, "encode") == (pytest.approx(0.00002), 3)
    assert told(values, "link") == (pytest.approx(0.005001), 3)


async def test_clients_before_version_3_have_no_times(serve, fake):
    served = await serve(fake("abc"))
    async with connect(served, protocol=2) as peer:
        await peer.open(num_prompt=1)
        await peer.receive(Opened)
        await peer.data(0, 1)
        assert (await peer.receive(Token)).times is None
        await peer.send(Times(num_tokens=1))
        assert "Times" in (await peer.receive(Error)).message
        assert await peer.closed() == 1002


async def test_a_real_engine_tells_the_times_of_tokens(serve, make_engine):
    served = await serve(await make_engine())
    async with httpx.AsyncClient(base_url=served.url) as client:
        body = {"model": "tiny", "prompt": "x", "max_tokens": 4, "ignore_eos": True}
        assert (await client.post("/v1/completions", json=body)).status_code == 200
        text = (await client.get("/metrics")).text
    values = samples(text)
    for part in ("queue", "tail", "sample"):
        assert values["sliceserve:token_time_seconds_total", part, "thin"] > 0
        assert values["sliceserve:token_time_tokens_total", part, "thin"] == 3
    assert values["sliceserve:request_prefill_time_seconds_count", "thin"] == 1
    assert values["sliceserve:request_decode_time_seconds_count", "thin"] == 1
    # The prompt's step, and three that made the tokens after the first.
    assert values["sliceserve:iteration_tokens_total_count",] == 4
    assert values["sliceserve:iteration_requests_sum",] == 4
    total = values["sliceserve:kv_blocks", "0-1"]
    assert total > values["sliceserve:kv_blocks_used", "0-1"] == 0
    # Of no series there are two.
    lines = [line.rpartition(" ")[0] for line in text.splitlines() if line[0] != "#"]
    assert len(lines) == len(set(lines))
    types = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len({line.split()[2] for line in types})
