"""How a client comes to the profile that its packets are made by."""

import subprocess
import sys

import httpx
import pytest
from split_peer import connect, dial, hello

from sliceserve.engine.messages import Open, ProfileInfo
from sliceserve.engine.profiles import profile_store
from sliceserve.transport.messages import Error

CODEC = "calibrated/1"
DATA = b"what a codec knows of a model"


@pytest.fixture(autouse=True)
def _store_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("SLICESERVE_CACHE", str(tmp_path))


@pytest.fixture
def engine(fake):
    """Offers a profile for cuts 1 and 3; for cut 3 one without token ids, too."""
    kept = profile_store().put(DATA)
    profiles = [
        ProfileInfo(codec=CODEC, cut=cut, predictor=predictor, digest=digest, num_bytes=len(DATA))
        for cut, predictor, digest in (
            (1, "state", "1" * 64),
            (3, "state", kept),
            (3, "none", "3" * 64),
        )
    ]
    return fake(codecs=[CODEC, "float32/1"], profiles=profiles)


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"cut": 1}, 0),
        ({"cut": 3}, 1),
        ({"cut": None}, 1),
        ({"cut": 3, "hide_tokens": True}, 2),
    ],
)
async def test_welcome_names_the_profile_of_the_cut(serve, engine, changes, place):
    async with connect(await serve(engine), codec=CODEC, **changes) as peer:
        digest = engine.info.profiles[place].digest
        assert (peer.welcome.codec, peer.welcome.profile) == (CODEC, digest)
        await peer.open()
        await peer.receive()
        (opened,) = engine.sent(Open)
        assert opened.codec == f"{CODEC}@{digest}"


@pytest.mark.parametrize("hide_tokens", [False, True])
async def test_a_codec_without_profiles_has_none(serve, engine, hide_tokens):
    async with connect(await serve(engine), hide_tokens=hide_tokens) as peer:
        assert peer.welcome.profile is None
        await peer.open()
        await peer.receive()
        assert engine.sent(Open)[0].codec == "float32/1"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"cut": 5}, "no profile of codec 'calibrated/1' for cut 5"),
        ({"cut": 1, "hide_tokens": True}, "no profile that hides tokens of codec"),
        ({"codec": f"{CODEC}@{'1' * 64}"}, "known are calibrated/1, float32/1"),
    ],
)
async def test_a_cut_without_a_profile_is_refused(serve, engine, changes, says):
    async with dial(await serve(engine)) as peer:
        await peer.send(hello(**{"codec": CODEC, **changes}))
        error = await peer.receive(Error)
        assert error.code == "unsupported_codec"
        assert says in error.message


async def test_profiles_are_listed_and_handed_over(serve, engine):
    served = await serve(engine, api_keys={"sesame": "a"})
    digest = engine.info.profiles[1].digest
    headers = {"Authorization": "Bearer sesame"}
    async with httpx.AsyncClient(base_url=served.url, headers=headers) as client:
        listed = (await client.get("/v1/split/info")).json()["profiles"]
        assert listed[1] == {
            "codec": CODEC,
            "cut": 3,
            "predictor": "state",
            "digest": digest,
            "num_bytes": len(DATA),
        }
        answer = await client.get(f"/v1/split/profiles/{digest}")
        assert (answer.status_code, answer.content) == (200, DATA)
        assert answer.headers["content-type"] == "application/octet-stream"
        assert "immutable" in answer.headers["cache-control"]
    async with httpx.AsyncClient(base_url=served.url) as client:
        answer = await client.get(f"/v1/split/profiles/{digest}")
        assert answer.status_code == 401


async def test_no_other_file_is_handed_over(serve, engine):
    served = await serve(engine)
    unlisted = profile_store().put(b"a profile of another model")
    gone = "1" * 64
    async with httpx.AsyncClient(base_url=served.url) as client:
        for digest in (unlisted, gone, "..%2F..%2Fetc%2Fpasswd", "%00", "x" * 5000, "é"):
            answer = await client.get(f"/v1/split/profiles/{digest}")
            assert answer.status_code == 404
            assert answer.json()["error"]["type"] == "not_found_error"


def test_the_api_does_without_torch():
    words = "import sliceserve.api.worker, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", words]).returncode == 0
