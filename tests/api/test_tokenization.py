"""Token ids over HTTP, as vLLM's endpoints give them; what is said of models and of the server."""

import openai.types
import pytest
from asgi_client import asgi_client

from sliceserve import __version__


@pytest.fixture
async def client(backend_of, fake):
    async with asgi_client(backend_of(fake(), name="org/tiny")) as client:
        yield client


async def test_text_to_tokens_and_back(client, tokenizer):
    answer = (await client.post("/tokenize", json={"prompt": "Grüße"})).json()
    assert answer == {
        "count": 7,
        "max_model_len": 128,
        "tokens": tokenizer.encode("Grüße"),
        "token_strs": None,
    }
    back = await client.post("/detokenize", json={"tokens": answer["tokens"], "model": "org/tiny"})
    assert back.json() == {"prompt": "Grüße"}
    # An empty text is a text, and no tokens are tokens.
    assert (await client.post("/tokenize", json={"prompt": ""})).json()["tokens"] == []
    assert (await client.post("/detokenize", json={"tokens": []})).json() == {"prompt": ""}


async def test_tokens_are_spelled_as_the_vocabulary_does(client):
    body = {"prompt": "a é</s>", "return_token_strs": True, "add_special_tokens": False}
    answer = (await client.post("/tokenize", json=body)).json()
    # The alphabet of byte-level BPE; the end token is one token in the text, too.
    assert answer["token_strs"] == ["a", "Ġ", "Ã", "©", "</s>"]
    back = await client.post("/detokenize", json={"tokens": answer["tokens"]})
    assert back.json() == {"prompt": "a é</s>"}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "<s>user: Hi\n<s>assistant: I\nassistant: "),
        ({"add_generation_prompt": False}, "<s>user: Hi\n<s>assistant: I\n"),
        ({"continue_final_message": True}, "<s>user: Hi\n<s>assistant: I"),
    ],
)
async def test_messages_are_written_by_the_template(client, options, text):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "I"}]
    answer = (await client.post("/tokenize", json={"messages": messages, **options})).json()
    back = await client.post("/detokenize", json={"tokens": answer["tokens"]})
    assert back.json() == {"prompt": text}


HI = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, None),
        ("/tokenize", {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, None),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ("/tokenize", {"messages": HI, "chat_template": "{{ 1 }}"}, "chat_template"),
        ("/detokenize", {"tokens": [272]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": [2**70]}, "tokens[0]"),
        ("/detokenize", {"tokens": "1"}, "tokens"),
        ("/detokenize", {}, "tokens"),
    ],
)
async def test_what_is_wrong_is_named(client, path, body, param):
    response = await client.post(path, json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_another_model_is_not_found(client):
    for path, body in (("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [5]})):
        response = await client.post(path, json={**body, "model": "gpt-9"})
        assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


async def test_the_tokenizer_describes_itself(client, tokenizer):
    info = (await client.get("/tokenizer_info")).json()
    assert info["tokenizer_class"] == type(tokenizer._pretrained).__name__
    assert (info["bos_token"], info["eos_token"], info["pad_token"]) == ("<s>", "</s>", "<pad>")
    assert "add_generation_prompt" in info["chat_template"]
    assert not [name for name in info if name.endswith("_file")]


async def test_a_tail_has_a_tokenizer_too(backend_of, fake):
    async with asgi_client(backend_of(fake(thin=False, first_layer=1))) as client:
        answer = (await client.post("/tokenize", json={"prompt": "ab"})).json()
        assert (answer["count"], answer["max_model_len"]) == (2, 128)


async def test_keys_are_asked_for_here_too(backend_of, fake):
    async with asgi_client(backend_of(fake()), api_keys={"sesame": "a"}) as client:
        for method, path in (
            ("POST", "/tokenize"),
            ("POST", "/detokenize"),
            ("GET", "/tokenizer_info"),
        ):
            assert (await client.request(method, path, json={})).status_code == 401
            headers = {"Authorization": "Bearer sesame"}
            known = await client.request(method, path, json={}, headers=headers)
            assert known.status_code in (200, 400)
        assert (await client.get("/version")).json() == {"version": __version__}


async def test_a_models_card_is_openais_and_vllms(client):
    listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    card = (await client.get("/v1/models/org/tiny")).json()
    assert listed["data"] == [card]
    openai.types.Model.model_validate(card)
    assert (card["id"], card["root"], card["parent"]) == ("org/tiny", "org/tiny", None)
    assert (card["owned_by"], card["max_model_len"]) == ("sliceserve", 128)
    assert card["permission"][0]["object"] == "model_permission"
