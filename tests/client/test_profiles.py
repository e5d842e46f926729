"""The profile of a codec: fetched once, checked, kept, and the same for all of a session."""

import asyncio
import contextlib

import pytest
from split_peers import Pair, ScriptedServer, answer

from sliceserve.client import ConnectionRefused, RequestFailed, SplitError
from sliceserve.client import profiles as client_profiles
from sliceserve.client.profiles import fetch_profile
from sliceserve.codec.profile_store import digest_of
from sliceserve.configs import SamplingParams
from sliceserve.engine.profiles import profile_store

DATA = b"what a codec knows of a model" * 1000
DIGEST = digest_of(DATA)
TEN = SamplingParams(max_tokens=10)


@pytest.fixture(autouse=True)
def _store_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("SLICESERVE_CACHE", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


class Fetching:
    """Gives ``data``, and counts."""

    def __init__(self, data=DATA):
        self.data = data
        self.asked = []

    async def __call__(self, digest):
        self.asked.append(digest)
        return self.data


def pair_with(server, fetching):
    return Pair(server, timeout_s=5.0, resume_timeout_s=2.0, fetch_profile=fetching)


async def test_a_missing_profile_is_fetched_before_the_head_is_made():
    server, fetching = ScriptedServer(), Fetching()
    server.profile = DIGEST
    for _ in range(2):
        pair = pair_with(server, fetching)
        await pair.session.start()
        assert profile_store().get(DIGEST) == DATA
        assert await pair.generate([1, 2, 3], TEN) == answer([1, 2, 3], TEN)
        await pair.session.close()
    assert fetching.asked == [DIGEST]
    profile_store().path(DIGEST).write_bytes(b"damaged")
    pair = pair_with(server, fetching)
    await pair.session.start()
    assert fetching.asked == [DIGEST] * 2
    await pair.session.close()


async def test_a_codec_without_a_profile_fetches_nothing():
    fetching = Fetching()
    pair = pair_with(ScriptedServer(), fetching)
    await pair.session.start()
    assert not fetching.asked
    await pair.session.close()


@pytest.mark.parametrize(
    ("digest", "data", "says"),
    [
        (DIGEST, DATA[:-1], "damaged"),
        (DIGEST, b"", "damaged"),
        ("../../profile", DATA, "no sha256"),
        (DIGEST + "\n", DATA, "no sha256"),
    ],
)
async def test_another_profile_is_refused_and_not_kept(digest, data, says):
    server = ScriptedServer()
    server.profile = digest
    pair = pair_with(server, Fetching(data))
    with pytest.raises(SplitError, match=says):
        await pair.session.start()
    assert pair.head is None
    assert not profile_store().folder.exists()
    await pair.settled()
    assert not server.sessions, "the server was told Bye"


async def test_a_store_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "profiles").write_text("in the way")
    server = ScriptedServer()
    server.profile = DIGEST
    with pytest.raises(SplitError, match="SLICESERVE_CACHE"):
        await pair_with(server, Fetching()).session.start()


async def test_a_session_does_not_go_on_with_another_profile():
    server = ScriptedServer()
    server.profile = DIGEST
    pair = pair_with(server, Fetching())
    await pair.session.start()
    server.cut_after = {3}
    generating = asyncio.create_task(pair.generate([1, 2, 3], TEN))
    while server.num_tokens < 3:
        await asyncio.sleep(0)
    server.profile = "0" * 64
    with pytest.raises(RequestFailed, match=f"profile {'0' * 64}.*{DIGEST}.*new session") as failed:
        await generating
    assert failed.value.code == "profile_mismatch"
    assert not ConnectionRefused(failed.value.code, "").may_retry
    await pair.session.close()


@contextlib.asynccontextmanager
async def http_server(answer):
    """Sends ``answer`` to whoever asks; its base address, and the requests so far."""
    requests = []

    async def serve(reader, writer):
        with contextlib.suppress(ConnectionError):
            requests.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", requests


def http(status, body, length=None):
    length = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n".encode() + body


async def test_fetching_over_http():
    async with http_server(http("200 OK", DATA)) as (url, requests):
        assert await fetch_profile(f"{url}/behind/v1", "sesame", 5.0, DIGEST) == DATA
        assert await fetch_profile(url, None, 5.0, DIGEST) == DATA
    first, second = (request.decode().splitlines() for request in requests)
    assert first[0] == f"GET /behind/v1/split/profiles/{DIGEST} HTTP/1.1"
    assert "Authorization: Bearer sesame" in first
    assert second[0] == f"GET /v1/split/profiles/{DIGEST} HTTP/1.1"
    assert not any(line.startswith("Authorization") for line in second)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (http("404 Not Found", b"{}"), "HTTP 404"),
        (http("200 OK", DATA, len(DATA) + 1), "could not be fetched"),
        (b"SSH-2.0-nothing\r\n", "could not be fetched"),
        (http("200 OK", b"", 100), "could not be fetched"),
        (http("200 OK", DATA * 3), "more than 50000 bytes"),
    ],
)
async def test_what_goes_wrong_is_one_sentence(monkeypatch, answer, says):
    monkeypatch.setattr(client_profiles, "MAX_PROFILE_BYTES", 50_000)
    async with http_server(answer) as (url, _):
        with pytest.raises(SplitError, match=says):
            await fetch_profile(url, None, 5.0, DIGEST)
    with pytest.raises(SplitError, match="could not be fetched"):
        await fetch_profile(url, None, 5.0, DIGEST)


async def test_a_silent_server_is_not_waited_for():
    async def silence(reader, writer):
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silence, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(SplitError, match="Timeout"):
            await fetch_profile(url, None, 0.1, DIGEST)
