"""What curl would see: bytes on a socket, read as the standard for server-sent events says."""

import http.client
import json
import socket
import time
from urllib.parse import urlsplit

import httpx
import pytest

QUESTION = {"role": "user", "content": "What is the capital of France?"}


@pytest.fixture
def body(endpoint):
    return {
        "model": endpoint.model,
        "messages": [QUESTION],
        "max_tokens": 12,
        "temperature": 0,
        "stream": True,
    }


def headers(endpoint) -> dict[str, str]:
    return {"Authorization": f"Bearer {endpoint.api_key}", "Content-Type": "application/json"}


def test_a_stream_is_framed_as_events_and_ends_with_done(endpoint, body):
    address = urlsplit(endpoint.base_url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=120)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers(endpoint))
    answer = connection.getresponse()
    raw = answer.read()
    assert answer.status == 200
    assert answer.getheader("content-type").startswith("text/event-stream")
    assert answer.getheader("content-length") is None
    # One field a line, "data", and an empty line after each event.
    assert raw.endswith(b"data: [DONE]\n\n") and b"\r" not in raw
    *events, done = raw.decode().removesuffix("\n\n").split("\n\n")
    assert done == "data: [DONE]"
    assert all(event.startswith("data: {") and "\n" not in event for event in events)
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "Paris" in "".join(delta.get("content") or "" for delta in deltas)
    # The connection may be used again.
    connection.request("GET", "/v1/models", headers=headers(endpoint))
    assert json.loads(connection.getresponse().read())["object"] == "list"
    connection.close()


def test_events_come_one_by_one(endpoint, body):
    url = f"{endpoint.base_url}/chat/completions"
    with httpx.stream("POST", url, json=body, headers=headers(endpoint), timeout=120) as answer:
        pieces = [piece for piece in answer.iter_raw() if piece]
    assert len(pieces) > 3


def test_who_hangs_up_ends_the_generation(endpoint, body):
    address = urlsplit(endpoint.base_url)
    content = json.dumps(body | {"max_tokens": 4000, "ignore_eos": True}).encode()
    lines = [f"{name}: {value}" for name, value in headers(endpoint).items()]
    lines = ["POST /v1/chat/completions HTTP/1.1", f"Host: {address.netloc}", *lines]
    lines += [f"Content-Length: {len(content)}", "", ""]
    with socket.create_connection((address.hostname, address.port), timeout=120) as sock:
        sock.sendall("\r\n".join(lines).encode() + content)
        assert sock.recv(1000).startswith(b"HTTP/1.1 200")
    deadline = time.monotonic() + 60
    while num_live(endpoint) > 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def num_live(endpoint) -> float:
    url = endpoint.base_url.removesuffix("/v1") + "/metrics"
    text = httpx.get(url, headers=headers(endpoint), timeout=60).raise_for_status().text
    (line,) = (x for x in text.splitlines() if x.startswith("sliceserve:num_requests_live "))
    return float(line.split()[1])


def test_a_request_that_cannot_be_is_refused_in_openais_shape(endpoint):
    url = f"{endpoint.base_url}/chat/completions"
    answer = httpx.post(url, content=b'{"model": ', headers=headers(endpoint))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
