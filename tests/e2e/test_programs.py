"""The commands as users run them: a server, a demo, a chat through a pipe."""

import json
import signal

import httpx
import psutil
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.model, pytest.mark.timeout(240)]

SMALL = ["--kv-cache-tokens", "1024"]


def wait_until_ready(server) -> dict:
    line = server.stdout.readline()
    assert line, server.stderr.read()
    return json.loads(line)


def test_the_demo_answers_with_the_model_cut_in_two(start):
    demo = start("demo", "--json", "--prompt", "What is the capital of France?", "--split", "10")
    out, err = demo.communicate(timeout=200)
    assert demo.returncode == 0, err
    report = json.loads(out)
    assert out.count("\n") == 1
    assert "Paris" in report["text"]
    assert report["text"].strip() in err
    assert (report["num_layers"], report["split"], report["codec"]) == (30, 10, "slicer")
    assert report["prompt_tokens"] > 5
    assert 1 <= report["tokens"] <= 64
    assert report["tokens_per_s"] > 0
    assert report["ttft_s"] > 0
    assert 0 < report["uplink_bytes_per_token"] < 2 * 576
    assert report["uplink_reduction_vs_fp16"] == pytest.approx(
        2 * 576 / report["uplink_bytes_per_token"]
    )
    assert 0 < report["server_compute_share"] < 1


def test_the_demo_leaves_no_server_when_interrupted(start):
    demo = start("demo", "--max-tokens", "2000", "--prompt", "Count to one thousand.")
    assert demo.stdout.read(1), demo.stderr.read()
    children = psutil.Process(demo.pid).children(recursive=True)
    assert children
    demo.send_signal(signal.SIGINT)
    _, err = demo.communicate(timeout=60)
    assert demo.returncode == 1
    assert err.strip().endswith("Error: interrupted")
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_the_demo_shows_why_its_server_died(start):
    demo = start("demo", "--split", "99")
    out, err = demo.communicate(timeout=120)
    assert (demo.returncode, out) == (1, "")
    assert "cut 99 is out of range" in err
    assert "Traceback" not in err


def test_a_server_ends_with_exit_code_0_on_sigterm(start):
    server = start("serve", "--json", "--port", "0", "--cuts", "8,22", *SMALL)
    ready = wait_until_ready(server)
    assert (ready["num_layers"], ready["cuts"]) == (30, [8, 22])
    assert httpx.get(f"{ready['url']}/health").status_code == 200
    server.send_signal(signal.SIGTERM)
    _, err = server.communicate(timeout=60)
    assert server.returncode == 0, err
    assert "Traceback" not in err


def test_a_chat_through_a_pipe(start):
    server = start("serve", "--json", "--port", "0", *SMALL, SLICESERVE_API_KEYS="a secret")
    url = wait_until_ready(server)["url"]
    args = ["--server", url, "--split", "8", "--max-tokens", "12"]
    refused = start("chat", *args)
    out, err = refused.communicate("hello\n", timeout=120)
    assert refused.returncode == 1
    assert err.startswith("Error: ")
    chat = start("chat", *args, SLICESERVE_API_KEY="a secret")
    lines = "What is the capital of France?\n/reset\n/stats\n/quit\nnever read\n"
    out, err = chat.communicate(lines, timeout=120)
    assert chat.returncode == 0, err
    assert "Paris" in out
    assert "\x1b" not in out + err
    assert "8 here, 22 on the server" in err
