"""Certificates on both ends of a connection, and web pages that may or may not ask."""

import shutil
import ssl
import subprocess
from pathlib import Path

import httpx
import pytest
import websockets
from asgi_client import asgi_client
from split_peer import dial, hello

from sliceserve.api.listening import ServerError, expect_certificate
from sliceserve.client.errors import SplitError
from sliceserve.client.profiles import fetch_profile
from sliceserve.configs import HttpConfig
from sliceserve.transport.frames import decode, encode
from sliceserve.transport.link import LinkRefused
from sliceserve.transport.messages import Welcome
from sliceserve.transport.websocket import connect, tls_context

PAGE = "https://page.example"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Files of a certificate for 127.0.0.1, signed by itself, and of its key."""
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("openssl is not installed; it makes the certificate for this test")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout", key, "-out", cert]
    command += ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


@pytest.fixture
async def served(serve, fake, certificate):
    cert, key = certificate
    return await serve(fake(), ssl_certfile=cert, ssl_keyfile=key)


async def test_openai_routes_by_https(served, certificate):
    assert served.url.startswith("https://127.0.0.1:")
    context = tls_context(certificate[0])
    async with httpx.AsyncClient(base_url=served.url, verify=context) as client:
        answer = await client.post("/v1/completions", json={"model": "tiny", "prompt": "Hey"})
        assert answer.json()["choices"][0]["text"] == "Hello, world"
    async with httpx.AsyncClient(base_url=served.url) as client:
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await client.get("/health")


async def test_split_clients_by_wss(served, certificate):
    link = await connect(served.url, ca_certs=certificate[0])
    await link.send(encode(hello()))
    assert isinstance(decode(await link.receive()), Welcome)
    await link.close()


async def test_a_server_that_nobody_vouches_for_is_not_connected_to(served):
    with pytest.raises(LinkRefused, match=r"not to be trusted: self.signed.*ssl_ca_certs") as error:
        await connect(served.url)
    assert error.value.code == "untrusted"


async def test_profiles_by_https(served, certificate):
    # There is none; the server was reached and said so.
    with pytest.raises(SplitError, match="HTTP 404"):
        await fetch_profile(served.url, None, 5.0, "0" * 64, ca_certs=certificate[0])
    with pytest.raises(SplitError, match="CERTIFICATE_VERIFY_FAILED"):
        await fetch_profile(served.url, None, 5.0, "0" * 64)


def test_files_that_cannot_be_used_are_sentences(certificate, tmp_path):
    cert, key = certificate
    expect_certificate(HttpConfig())
    expect_certificate(HttpConfig(ssl_certfile=cert, ssl_keyfile=key))
    both = tmp_path / "both.pem"
    both.write_bytes(Path(key).read_bytes() + Path(cert).read_bytes())
    expect_certificate(HttpConfig(ssl_certfile=str(both)))
    for wrong in (
        {"ssl_certfile": str(tmp_path / "none.pem")},
        {"ssl_certfile": cert},
        {"ssl_certfile": key, "ssl_keyfile": cert},
    ):
        with pytest.raises(ServerError, match="both must be in PEM, and belong together"):
            expect_certificate(HttpConfig(**wrong))
    with pytest.raises(ValueError, match="ssl_keyfile must be given with ssl_certfile"):
        HttpConfig(ssl_keyfile=key)
    with pytest.raises(ValueError, match="must be a file with certificates in PEM"):
        tls_context(str(tmp_path / "none.pem"))
    with pytest.raises(ValueError, match="must be a file with certificates in PEM"):
        tls_context(key)


def test_a_key_with_a_password_does_not_wait_for_the_terminal(certificate, tmp_path):
    cert, key = certificate
    locked = str(tmp_path / "locked.pem")
    command = ["openssl", "ec", "-in", key, "-aes256", "-passout", "pass:sesame", "-out", locked]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(ServerError, match="has a password; give one without"):
        expect_certificate(HttpConfig(ssl_certfile=cert, ssl_keyfile=locked))


async def preflight(client):
    return await client.options(
        "/v1/chat/completions",
        headers={
            "Origin": PAGE,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization",
        },
    )


async def test_pages_may_not_ask_unless_told_so(backend_of, fake):
    async with asgi_client(backend_of(fake()), api_keys={"k": "a"}) as client:
        assert (await preflight(client)).status_code == 401
        answer = await client.get("/health", headers={"Origin": PAGE})
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("origins", [(PAGE,), ("*",)])
async def test_pages_that_may_ask_need_a_key_all_the_same(backend_of, fake, origins):
    http = HttpConfig(allowed_origins=origins)
    async with asgi_client(backend_of(fake()), api_keys={"k": "a"}, http=http) as client:
        answer = await preflight(client)
        assert answer.status_code == 200
        assert "authorization" in answer.headers["access-control-allow-headers"].lower()
        refused = await client.get("/v1/models", headers={"Origin": PAGE})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] in (PAGE, "*")
        headers = {"Origin": "https://other.example", "Authorization": "Bearer k"}
        answer = await client.get("/v1/models", headers=headers)
        is_open = "access-control-allow-origin" in answer.headers
        assert is_open == (origins == ("*",))


@pytest.mark.parametrize(("origins", "lets_in"), [((), False), ((PAGE,), True), (("*",), True)])
async def test_sockets_of_pages(serve, fake, origins, lets_in):
    served = await serve(fake(), allowed_origins=origins)
    if lets_in:
        async with dial(served, origin=PAGE) as peer:
            await peer.send(hello())
            assert isinstance(await peer.receive(), Welcome)
        return
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with dial(served, origin=PAGE):
            pass
    assert refused.value.response.status_code == 403
    assert b"origin_not_allowed" in refused.value.response.body


def test_the_context_checks_names():
    assert tls_context(None).verify_mode is ssl.CERT_REQUIRED
    assert tls_context(None).check_hostname
