"""What each tenant may do: rates, models, cuts, sessions, and whose key is whose."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from api_fakes import FakeEngine
from asgi_client import accounts_of, asgi_client
from split_peer import dial, hello

from sliceserve.api.errors import ApiError
from sliceserve.api.limits import Account, Accounts, Rate
from sliceserve.api.shared_usage import SharedUsage
from sliceserve.api.usage import Usage
from sliceserve.configs import Keyring, TenantConfig
from sliceserve.engine.messages import Cancel, Open
from sliceserve.transport.messages import Error, Opened, Token


@pytest.fixture
def clock(monkeypatch):
    """Time stands still until it is told to go on."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr("sliceserve.api.limits.time", clock)
    return clock


def tenant(**limits):
    return TenantConfig(**{"name": "a", "api_keys": ("k-a",), **limits})


def refusal(call, *args, **kwargs):
    with pytest.raises(ApiError) as caught:
        call(*args, **kwargs)
    return caught.value


def bearer(key="k-a"):
    return {"Authorization": f"Bearer {key}"}


def test_a_minutes_worth_is_there_at_once_and_comes_back_evenly(clock):
    account = Account(tenant(requests_per_minute=6), Usage())
    for _ in range(6):
        account.admit(1)
    error = refusal(account.admit, 1)
    assert (error.status_code, error.code) == (429, "rate_limit_exceeded")
    assert error.retry_after_s == pytest.approx(10.0)
    assert "6 requests a minute. Try again in 10.0 s." in error.detail
    # To come back then is enough, and a little earlier is not.
    clock.now += 9.9
    assert refusal(account.admit, 1).retry_after_s == pytest.approx(0.1)
    clock.now += 0.2
    account.admit(1)
    clock.now += 3600
    for _ in range(6):
        account.admit(1)
    refusal(account.admit, 1)


def test_tokens_of_prompts_and_answers_are_one_account(clock):
    account = Account(tenant(tokens_per_minute=600), Usage())
    account.admit(400)
    account.spend(150)
    assert refusal(account.admit, 100).retry_after_s == pytest.approx(5.0)
    account.admit(50)
    # What was begun is not cut short: it is owed.
    account.spend(100)
    assert refusal(account.admit, 1).retry_after_s == pytest.approx(10.1)


def test_a_prompt_longer_than_a_minutes_worth_is_possible(clock):
    account = Account(tenant(tokens_per_minute=100), Usage())
    account.admit(1000)
    assert refusal(account.admit, 1).retry_after_s == pytest.approx(540.6)


def test_what_is_refused_costs_nothing(clock):
    account = Account(tenant(requests_per_minute=2, tokens_per_minute=100), Usage())
    account.admit(90)
    for _ in range(5):
        assert "tokens a minute" in refusal(account.admit, 50).detail
    account.admit(5)
    assert "requests a minute" in refusal(account.admit, 1).detail


def test_a_day_is_counted_beside_the_minute(clock):
    account = Account(tenant(tokens_per_minute=100, tokens_per_day=150), Usage())
    account.admit(100)
    clock.now += 60
    error = refusal(account.admit, 100)
    assert "150 tokens a day" in error.detail
    assert error.retry_after_s == pytest.approx(50 * 86400 / 150 - 60)


def test_who_comes_back_is_let_in_until_it_owes_too_much(clock):
    account = Account(tenant(requests_per_minute=2), Usage())
    for _ in range(4):
        account.admit(1, resumed=True)
    refusal(account.admit, 1, resumed=True)


def test_the_headers_say_what_is_left(clock):
    account = Account(tenant(requests_per_minute=60, tokens_per_minute=600), Usage())
    account.admit(100)
    assert account.headers() == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1.000s",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "500",
        "x-ratelimit-reset-tokens": "10.000s",
    }
    assert Account(tenant(tokens_per_day=5), Usage()).headers() == {}


@pytest.mark.parametrize("most", [1, 7, 1000])
def test_what_is_left_can_be_had(most):
    rate = Rate("requests", most, 60.0)
    paid_back = rate.charge(most // 2, 0.0, 50.0)
    assert rate.seconds_until(rate.left(paid_back, 50.0), paid_back, 50.0) == 0


def test_models_cuts_and_priorities():
    account = Account(tenant(models=("m",), cuts=(8, 15), priority=5), Usage())
    account.expect_model("m")
    account.expect_cut(8)
    error = refusal(account.expect_model, "n")
    assert (error.status_code, error.code, error.param) == (403, "model_not_allowed", "model")
    assert error.body["error"]["type"] == "permission_error"
    assert (
        "leave all layers to the server; cuts allowed: 8, 15"
        in refusal(account.expect_cut, 0).detail
    )
    assert "enter at layer 22" in refusal(account.expect_cut, 22).detail
    assert [account.priority(wanted) for wanted in (-9, 0, 3)] == [5, 5, 8]
    assert Account(tenant(), Usage()).priority(-9) == -9


def test_a_key_may_be_given_by_its_digest():
    digest = hashlib.sha256("schlüssel".encode()).hexdigest()
    accounts = Accounts(Keyring(tenants=(tenant(api_keys=(f"sha256:{digest}", "plain")),)))
    # Headers come as latin-1, whatever their bytes mean.
    sent = "schlüssel".encode().decode("latin-1")
    assert accounts.of_key(sent).name == accounts.of_key("plain").name == "a"
    for key in (None, "", digest, f"sha256:{digest}", "other"):
        assert refusal(accounts.of_key, key).status_code == 401
    assert "plain" not in repr(vars(accounts))


def test_other_keys_from_now_on(clock):
    accounts = Accounts(Keyring(tenants=(tenant(requests_per_minute=1),)))
    inside = accounts.of_key("k-a")
    inside.admit(1)
    accounts.update(Keyring(tenants=(tenant(api_keys=("k-new",), requests_per_minute=2),)))
    refusal(accounts.of_key, "k-a")
    assert accounts.of_key("k-new") is inside
    # What it owes is time, and stays.
    assert refusal(inside.admit, 1).retry_after_s == pytest.approx(30.0)
    clock.now += 30
    inside.admit(1)


def test_workers_share_what_was_used(tmp_path, clock):
    one, two = (Account(tenant(tokens_per_minute=100), SharedUsage(tmp_path, "a")) for _ in "12")
    other = Account(tenant(tokens_per_minute=100), SharedUsage(tmp_path, "b/../b"))
    one.admit(60)
    assert refusal(two.admit, 60).retry_after_s == pytest.approx(12.0)
    two.spend(40)
    assert refusal(one.admit, 60).retry_after_s == pytest.approx(36.0)
    other.admit(100)


def test_sessions_are_counted_over_all_workers_and_freed_when_one_dies(tmp_path):
    # Locks are a process's: another one must hold them.
    code = (
        "import sys; from pathlib import Path\n"
        "from sliceserve.api.shared_usage import SharedUsage\n"
        "usage = SharedUsage(Path(sys.argv[1]), 'a')\n"
        "print([usage.take_session(3) for _ in range(2)], flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ,
    )
    try:
        assert other.stdout.readline() == b"[0, 1]\n"
        account = Account(tenant(max_sessions=3), SharedUsage(tmp_path, "a"))
        with account.session():
            error = refusal(account.session().__enter__)
            assert (error.status_code, error.code) == (429, "too_many_sessions")
        other.kill()
        other.wait()
        with account.session(), account.session(), account.session():
            refusal(account.session().__enter__)
    finally:
        other.kill()
        other.communicate()


async def test_http_says_what_is_left_and_when_to_come_back(backend_of, fake, clock):
    body = {"model": "tiny", "prompt": "Hey", "max_tokens": 4}
    limits = tenant(requests_per_minute=100, tokens_per_minute=10)
    async with asgi_client(backend_of(fake("Hello")), tenants=[limits]) as client:
        answer = await client.post("/v1/completions", json=body, headers=bearer())
        assert answer.status_code == 200
        # Less three of the prompt and four of the answer.
        assert answer.headers["x-ratelimit-remaining-tokens"] == "3"
        assert answer.headers["x-ratelimit-remaining-requests"] == "99"
        answer = await client.post(
            "/v1/completions", json={**body, "prompt": "12345"}, headers=bearer()
        )
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"
        assert answer.json()["error"]["type"] == "rate_limit_error"
        # Two tokens are missing, of ten a minute.
        assert answer.headers["retry-after"] == "12"


async def test_http_refuses_models_and_all_layers(backend_of, fake):
    engine = fake("Hello")
    tenants = [
        tenant(models=("other",)),
        TenantConfig(name="b", api_keys=("k-b",), cuts=(3,)),
    ]
    body = {"model": "tiny", "prompt": "Hey"}
    async with asgi_client(backend_of(engine), tenants=tenants) as client:
        for key, code in (("k-a", "model_not_allowed"), ("k-b", "cut_not_allowed")):
            answer = await client.post("/v1/completions", json=body, headers=bearer(key))
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, code)
        info = (await client.get("/v1/split/info", headers=bearer("k-b"))).json()
        assert (info["cuts"], info["thin"]) == ([3], False)
    assert engine.sent(Open) == []


async def test_a_tenant_sees_the_models_that_it_may_use(backend_of, fake):
    backend = replace(backend_of(fake("Hello")), models=("small", "large"))
    tenants = [tenant(models=("large",)), TenantConfig(name="b", api_keys=("k-b",))]
    async with asgi_client(backend, tenants=tenants) as client:
        for key, expected in (("k-a", ["large"]), ("k-b", ["small", "large"])):
            listed = await client.get("/v1/models", headers=bearer(key))
            assert [card["id"] for card in listed.json()["data"]] == expected
        for method, path, body in (
            ("GET", "/v1/models/small", None),
            ("POST", "/tokenize", {"model": "small", "prompt": "Hi"}),
            ("POST", "/detokenize", {"model": "small", "tokens": [70]}),
        ):
            answer = await client.request(method, path, json=body, headers=bearer("k-a"))
            assert answer.status_code == 403, path
            assert answer.json()["error"]["code"] == "model_not_allowed"
        large = await client.get("/v1/models/large", headers=bearer("k-a"))
        assert large.json()["id"] == "large"


async def refused(served, **changes):
    async with dial(served, additional_headers=bearer()) as peer:
        await peer.send(hello(**changes))
        return await peer.receive(Error)


async def test_the_split_socket_refuses_cuts_models_and_sessions(serve, fake):
    served = await serve(fake(), tenants=[tenant(cuts=(1, 5), max_sessions=1)])
    assert (await refused(served, cut=3)).code == "cut_not_allowed"
    async with dial(served, additional_headers=bearer()) as peer:
        await peer.send(hello(cut=None))
        welcome = await peer.receive()
        # The middle one of those that it may have.
        assert welcome.cut == 5
        error = await refused(served, cut=1)
        assert (error.code, error.retry_after_s) == ("too_many_sessions", 5.0)
        # Who comes back takes the place of its old connection.
        async with dial(served, additional_headers=bearer()) as again:
            await again.send(hello(cut=5, resume_token=welcome.resume_token))
            assert (await again.receive()).resume_token == welcome.resume_token
            assert await peer.closed() == 1008
            assert (await refused(served, cut=1)).code == "too_many_sessions"
    async with dial(served, additional_headers=bearer()) as peer:
        await peer.send(hello(cut=1))
        assert (await peer.receive()).cut == 1
    other = await serve(fake(), tenants=[tenant(models=("large",))])
    assert (await refused(other)).code == "model_not_allowed"


async def test_the_split_socket_keeps_to_rates(serve, fake, clock):
    engine: FakeEngine = fake("Hello")
    served = await serve(engine, tenants=[tenant(tokens_per_minute=4)])
    async with dial(served, additional_headers=bearer()) as peer:
        await peer.send(hello())
        await peer.receive()
        await peer.open(1, num_prompt=3, max_tokens=2)
        await peer.receive(Opened)
        await peer.data(0, 3)
        await peer.receive(Token)
        await peer.open(2, num_prompt=3)
        error = await peer.receive(Error)
        assert (error.request_id, error.code) == (2, "rate_limit_exceeded")
        assert error.retry_after_s == pytest.approx(45.0)
    assert [command.num_prompt for command in engine.sent(Open)] == [3]
    assert all(isinstance(command.request_id, str) for command in engine.sent(Cancel))


def test_accounts_without_keys_let_everybody_in():
    assert accounts_of().of_key(None).name == "default"
