"""The commands as users run them: a server, a demo, a chat through a pipe."""

import json
import re
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


@pytest.mark.timeout(1000)
def test_the_demo_answers_with_the_model_cut_in_two(start, with_profiles):
    """As it is typed for the first time: the codec's profile is made, and handed over."""
    prompt = ["--prompt", "What is the capital of France?"]
    demo = start("demo", "--json", *prompt, **with_profiles)
    out, err = demo.communicate(timeout=900)
    assert demo.returncode == 0, err
    report = json.loads(out)
    assert out.count("\n") == 1
    assert "Paris" in report["text"]
    assert report["text"].strip() in err
    assert (report["num_layers"], report["split"], report["codec"]) == (30, 15, "calibrated")
    assert report["prompt_tokens"] > 5
    assert 1 <= report["tokens"] <= 64
    assert report["tokens_per_s"] > 0
    assert report["ttft_s"] > 0
    assert 0 < report["uplink_bytes_per_token"] < 2 * 576 / 5
    assert report["uplink_reduction_vs_fp16"] == pytest.approx(
        2 * 576 / report["uplink_bytes_per_token"]
    )
    assert 0 < report["server_compute_share"] < 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_demo_leaves_no_server_when_it_is_ended(start, number, code):
    demo = start("demo", "--max-tokens", "2000", "--prompt", "Count to one thousand.")
    assert demo.stdout.read(1), demo.stderr.read()
    children = psutil.Process(demo.pid).children(recursive=True)
    assert children
    demo.send_signal(number)
    _, err = demo.communicate(timeout=60)
    assert demo.returncode == code
    assert "Traceback" not in err
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


@pytest.fixture(scope="module")
def server_url(start):
    """A server that asks for the key "a secret"."""
    server = start("serve", "--json", "--port", "0", *SMALL, SLICESERVE_API_KEYS="a secret")
    yield wait_until_ready(server)["url"]
    server.send_signal(signal.SIGTERM)
    server.communicate(timeout=60)


def test_a_chat_through_a_pipe(start, server_url):
    args = ["--server", server_url, "--split", "8", "--codec", "float16", "--max-tokens", "12"]
    chat = start("chat", *args, SLICESERVE_API_KEY="a secret")
    lines = "What is the capital of France?\nAnd of Italy?\n/reset\n/stats\n/quit\nnever read\n"
    out, err = chat.communicate(lines, timeout=120)
    assert chat.returncode == 0, err
    assert "Paris" in out
    assert "\x1b" not in out + err
    assert "8 here, 22 on the server" in err
    # The second turn began with the first.
    kept = re.search(r"(\d+) tokens here, (\d+) not sent", err)
    assert kept is not None and kept[1] == kept[2] != "0", err


def test_a_client_without_the_key_is_told_so(start, server_url):
    chat = start("chat", "--server", server_url, "--split", "8")
    out, err = chat.communicate("hello\n", timeout=120)
    assert (chat.returncode, out) == (1, "")
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("Error: ")


def test_a_gateway_answers_on_the_device(start, server_url):
    args = ["--json", "--server", server_url, "--codec", "float16", "--port", "0"]
    gateway = start("gateway", *args, "--served-model-name", "mine", SLICESERVE_API_KEY="a secret")
    url = wait_until_ready(gateway)["url"]
    question = {"role": "user", "content": "What is the capital of France?"}
    body = {"model": "mine", "messages": [question], "max_tokens": 12, "temperature": 0}
    answers = [
        httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120).json() for _ in range(2)
    ]
    cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]
    # The second time, both sides have kept it.
    assert cached[0] == 0 < cached[1]
    for answer in answers:
        assert "Paris" in answer["choices"][0]["message"]["content"]
    gateway.send_signal(signal.SIGTERM)
    _, err = gateway.communicate(timeout=60)
    assert gateway.returncode == 0, err
