"""Keys, tenants and priorities from the door to the engine."""

import httpx
import pytest
from asgi_client import asgi_client
from split_peer import dial, hello

from sliceserve.engine.messages import Open

KEYS = {"k-a": "a", "k-b": "b", "k-b2": "b"}


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize(("key", "tenant"), [("k-a", "a"), ("k-b2", "b")])
async def test_routes_pass_tenant_and_priority_on(backend_of, fake, key, tenant):
    engine = fake("Hi")
    async with asgi_client(backend_of(engine), api_keys=KEYS) as client:
        for path, body in (
            ("completions", {"prompt": "x", "priority": -3}),
            ("chat/completions", {"messages": [{"role": "user", "content": "x"}], "priority": -3}),
        ):
            body["model"] = "tiny"
            response = await client.post(f"/v1/{path}", json=body, headers=bearer(key))
            assert response.status_code == 200
            stranger = await client.post(f"/v1/{path}", json=body, headers=bearer("k-c"))
            assert stranger.status_code == 401
    opened = engine.sent(Open)
    assert [(command.tenant, command.priority) for command in opened] == [(tenant, -3)] * 2


async def test_without_keys_all_are_one_tenant(backend_of, fake):
    engine = fake("Hi")
    async with asgi_client(backend_of(engine)) as client:
        await client.post("/v1/completions", json={"prompt": "x", "model": "tiny"})
    assert (engine.sent(Open)[0].tenant, engine.sent(Open)[0].priority) == ("default", 0)


async def test_split_sessions_pass_tenant_and_priority_on(serve, fake):
    engine = fake("Hi")
    served = await serve(engine, api_keys=KEYS)
    for key in ("k-a", "k-b"):
        async with dial(served, additional_headers=bearer(key)) as peer:
            await peer.send(hello())
            await peer.receive()
            await peer.open(priority=7)
            await peer.receive()
    assert [(command.tenant, command.priority) for command in engine.sent(Open)] == [
        ("a", 7),
        ("b", 7),
    ]


async def test_a_priority_must_be_a_whole_number(backend_of, fake):
    async with asgi_client(backend_of(fake())) as client:
        body = {"prompt": "x", "model": "tiny", "priority": "high"}
        response = await client.post("/v1/completions", json=body)
    assert response.status_code == httpx.codes.BAD_REQUEST
    assert response.json()["error"]["param"] == "priority"
