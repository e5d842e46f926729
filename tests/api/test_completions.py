"""/v1/completions over a real engine: echo, scores of prompts, choices, and what ends them."""

import asyncio
import json

import httpx
import pytest
import torch

from sliceserve.api.app import create_app
from sliceserve.api.backend import Backend
from sliceserve.client import AsyncSplitLLM

TEXT = "The quick brown fox"
# lm-evaluation-harness asks for log-likelihoods like this.
SCORING = {"model": "tiny", "temperature": 0, "max_tokens": 1, "logprobs": 1, "echo": True}


@pytest.fixture(scope="module")
def model(model_path):
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(model_path).eval()


@pytest.fixture
def logprobs_of(model):
    """What transformers gives each token after the first: (len - 1, vocab)."""

    def score(ids):
        with torch.inference_mode():
            return model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)

    return score


@pytest.fixture
async def client(serve, make_engine):
    served = await serve(await make_engine(max_tokens_per_step=16))
    async with httpx.AsyncClient(base_url=served.url, timeout=60.0) as client:
        yield client


@pytest.fixture
async def gateway(serve, make_engine, model_path, tokenizer):
    """The same routes on a device that runs the first three layers itself."""
    served = await serve(await make_engine(max_tokens_per_step=16))
    options = {"codec": "float32", "dtype": "float32", "device": "cpu"}
    async with AsyncSplitLLM(served.url, model=str(model_path), split=3, **options) as llm:
        backend = Backend(
            models=("tiny",),
            fingerprint=llm.head.info.fingerprint,
            tokenizer=tokenizer,
            generator=llm.generator,
            engine=None,
            stats=llm.head.stats,
        )
        transport = httpx.ASGITransport(create_app(backend))
        async with httpx.AsyncClient(transport=transport, base_url="http://device") as client:
            yield client


async def complete(client, status=200, **body):
    response = await client.post("/v1/completions", json={"model": "tiny", **body})
    assert response.status_code == status, response.text
    return response.json()


async def chunks_of(client, **body):
    chunks = []
    request = {"model": "tiny", "stream": True, **body}
    async with client.stream("POST", "/v1/completions", json=request) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                chunks.append(json.loads(line.removeprefix("data: ")))
    return chunks


async def test_log_likelihoods_as_the_harness_asks_for_them(client, tokenizer, logprobs_of):
    contexts = ["The answer is", "2 + 2 =", "a"]
    continuations = [" no", " four", "bcdefgh"]
    encoded = [tokenizer.encode(a + b) for a, b in zip(contexts, continuations, strict=True)]
    reply = await complete(client, **SCORING, prompt=encoded)
    for choice, context, ids in zip(reply["choices"], contexts, encoded, strict=True):
        size = len(tokenizer.encode(context))
        told = choice["logprobs"]
        scores, top = told["token_logprobs"][size:-1], told["top_logprobs"][size:-1]
        expected = logprobs_of(ids)[size - 1 :]
        wanted = expected[range(len(ids) - size), ids[size:]]
        assert sum(scores) == pytest.approx(wanted.sum().item(), abs=1e-3)
        is_greedy = scores == [max(best.values()) for best in top]
        assert is_greedy == (expected.argmax(-1).tolist() == ids[size:])


async def test_a_greedy_continuation_is_seen_to_be_greedy(client, tokenizer):
    prompt = tokenizer.encode(TEXT)
    answer = await complete(
        client,
        prompt=prompt,
        max_tokens=6,
        temperature=0,
        logprobs=0,
        ignore_eos=True,
        return_tokens_as_token_ids=True,
    )
    names = answer["choices"][0]["logprobs"]["tokens"]
    continuation = [int(name.removeprefix("token_id:")) for name in names]
    assert len(continuation) == 6
    reply = await complete(client, **SCORING, prompt=[[*prompt, *continuation]])
    told = reply["choices"][0]["logprobs"]
    scores, top = told["token_logprobs"][len(prompt) : -1], told["top_logprobs"][len(prompt) : -1]
    assert scores == [max(best.values()) for best in top]
    expected = answer["choices"][0]["logprobs"]["token_logprobs"]
    assert scores == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("as_ids", [False, True])
@pytest.mark.parametrize("num_tokens", [0, 7])
async def test_an_echo_whole_and_streamed(client, tokenizer, logprobs_of, as_ids, num_tokens):
    ids = tokenizer.encode(TEXT)
    body = {
        "prompt": ids if as_ids else TEXT,
        "max_tokens": num_tokens,
        "echo": True,
        "logprobs": 2,
        "seed": 5,
        "ignore_eos": True,
        # Bytes that are no character have no place in a text.
        "logit_bias": dict.fromkeys(map(str, tokenizer.encode("abcdefgh")), 50),
    }
    reply = await complete(client, **body)
    (choice,) = reply["choices"]
    told = choice["logprobs"]
    assert choice["text"].startswith(TEXT)
    assert choice["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == num_tokens
    assert {len(values) for values in told.values()} == {len(ids) + num_tokens}
    assert told["token_logprobs"][0] is told["top_logprobs"][0] is None
    expected = logprobs_of(ids)
    wanted = expected[range(len(ids) - 1), ids[1:]].tolist()
    assert told["token_logprobs"][1 : len(ids)] == pytest.approx(wanted, abs=1e-3)
    told_of_prompt = zip(told["tokens"][1:], told["top_logprobs"][1:], expected, strict=False)
    for token, best, row in told_of_prompt:
        # Two alternatives, and the token itself.
        assert token in best
        assert 2 <= len(best) <= 3
        assert max(best.values()) == pytest.approx(row.max().item(), abs=1e-3)
    for token, offset in zip(told["tokens"], told["text_offset"], strict=True):
        assert choice["text"][offset:].startswith(token)
    chunks = await chunks_of(client, **body)
    parts = [chunk["choices"][0] for chunk in chunks]
    assert "".join(part["text"] for part in parts) == choice["text"]
    for name, values in told.items():
        assert [value for part in parts for value in part["logprobs"][name]] == values


async def test_a_gateway_answers_as_the_server_does(client, gateway, tokenizer):
    tell_all = {"echo": True, "logprobs": 2, "prompt_logprobs": 1, "seed": 3, "ignore_eos": True}
    change_all = {"logit_bias": {"70": 3}, "presence_penalty": 1.0, "repetition_penalty": 1.2}
    body = {"prompt": tokenizer.encode(TEXT), "n": 2, "best_of": 3, "max_tokens": 6}
    body |= tell_all | change_all
    there, here = await complete(client, **body), await complete(gateway, **body)
    for ours, theirs in zip(here["choices"], there["choices"], strict=True):
        assert ours["text"] == theirs["text"]
        for name in ("tokens", "text_offset"):
            assert ours["logprobs"][name] == theirs["logprobs"][name]
        for name in ("token_logprobs", "top_logprobs"):
            for a, b in zip(ours["logprobs"][name], theirs["logprobs"][name], strict=True):
                assert a == pytest.approx(b, abs=1e-3)
        for a, b in zip(ours["prompt_logprobs"], theirs["prompt_logprobs"], strict=True):
            assert (a or {}).keys() == (b or {}).keys()
    assert here["usage"]["completion_tokens"] == there["usage"]["completion_tokens"] == 18


async def test_an_echo_without_logprobs_comes_once_for_each_choice(client):
    body = {"prompt": [TEXT, "éa"], "n": 2, "max_tokens": 3, "echo": True, "seed": 1}
    reply = await complete(client, **body)
    texts = [choice["text"] for choice in reply["choices"]]
    assert [text[:2] for text in texts] == ["Th", "Th", "éa", "éa"]
    assert all(choice["logprobs"] is None for choice in reply["choices"])
    streamed = [""] * 4
    for chunk in await chunks_of(client, **body):
        streamed[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert streamed == texts


async def test_prompt_logprobs_as_vllm_tells_them(client, tokenizer, logprobs_of):
    ids = tokenizer.encode(TEXT)
    reply = await complete(client, prompt=TEXT, max_tokens=2, prompt_logprobs=1)
    first, *scores = reply["choices"][0]["prompt_logprobs"]
    assert first is None
    for token_id, entries, row in zip(ids[1:], scores, logprobs_of(ids), strict=True):
        rank = int((row > row[token_id]).sum()) + 1
        assert next(iter(entries)) == str(token_id)
        assert entries[str(token_id)] == {
            "logprob": pytest.approx(row[token_id].item(), abs=1e-3),
            "rank": rank,
            "decoded_token": tokenizer.decode([token_id], False),
        }
        assert entries[str(row.argmax().item())]["rank"] == 1
        assert len(entries) == 1 + (rank > 1)
    assert "prompt_logprobs" not in (await complete(client, prompt=TEXT))["choices"][0]


async def test_a_chat_tells_of_its_prompt_too(client, tokenizer, logprobs_of):
    messages = [{"role": "user", "content": TEXT}]
    body = {"model": "tiny", "messages": messages, "max_tokens": 2, "n": 2, "seed": 1}
    body |= {"logprobs": True, "prompt_logprobs": 0, "return_tokens_as_token_ids": True}
    reply = (await client.post("/v1/chat/completions", json=body)).json()
    ids = tokenizer.chat_prompt(messages)
    expected = logprobs_of(ids)[range(len(ids) - 1), ids[1:]].tolist()
    first, *scores = reply["prompt_logprobs"]
    assert first is None
    told = [entries[str(i)]["logprob"] for i, entries in zip(ids[1:], scores, strict=True)]
    assert told == pytest.approx(expected, abs=1e-3)
    for choice in reply["choices"]:
        names = [entry["token"] for entry in choice["logprobs"]["content"]]
        assert names
        assert all(name.removeprefix("token_id:").isdecimal() for name in names)


async def test_the_best_answers_are_told(client):
    body = {"prompt": [TEXT, "x"], "max_tokens": 5, "seed": 7, "ignore_eos": True}
    made = await complete(client, **body, n=6, logprobs=0)
    reply = await complete(client, **body, n=2, best_of=6)
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2, 3]
    for start, told in ((0, reply["choices"][:2]), (6, reply["choices"][2:])):
        by_mean = sorted(
            made["choices"][start : start + 6],
            key=lambda choice: -sum(choice["logprobs"]["token_logprobs"]),
        )
        assert [choice["text"] for choice in told] == [choice["text"] for choice in by_mean[:2]]
    assert all(choice["logprobs"] is None for choice in reply["choices"])
    # All that were made are paid for, each prompt once.
    assert reply["usage"]["completion_tokens"] == made["usage"]["completion_tokens"] == 60
    assert reply["usage"]["prompt_tokens"] == len(TEXT) + 1


async def test_usage_grows_with_the_chunks(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = await chunks_of(
        client, prompt="abc", n=2, max_tokens=4, logprobs=0, stream_options=options, ignore_eos=True
    )
    *parts, last = chunks
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 8
    assert last["usage"]["prompt_tokens"] == 3
    for index in (0, 1):
        usages = [part["usage"] for part in parts if part["choices"][0]["index"] == index]
        assert [usage["completion_tokens"] for usage in usages] == [1, 2, 3, 4]
        assert {usage["prompt_tokens"] for usage in usages} == {3}


async def test_biases_and_penalties_change_what_is_said(client, tokenizer):
    (letter,) = tokenizer.encode("z")
    body = {"prompt": TEXT, "max_tokens": 40, "temperature": 0, "ignore_eos": True}

    async def text(**more):
        return (await complete(client, **body, **more))["choices"][0]["text"]

    assert await text(logit_bias={str(letter): 100}) == "z" * 40
    plain = await text()
    for penalty in ("presence_penalty", "frequency_penalty", "repetition_penalty"):
        assert await text(**{penalty: 1.5}) != plain


async def test_stop_strings_in_the_answer_and_after_min_tokens(client, tokenizer):
    bias = {str(tokenizer.encode(c)[0]): b for c, b in (("a", 100), ("b", 99))}
    body = {
        "prompt": "x",
        "max_tokens": 8,
        "temperature": 0,
        "logit_bias": bias,
        "frequency_penalty": 2.0,
        "stop": ["b"],
    }

    async def text(**more):
        return (await complete(client, **body, **more))["choices"][0]["text"]

    assert await text() == "a"
    assert await text(include_stop_str_in_output=True) == "ab"
    assert (await text(min_tokens=4)).startswith("abab"[:3])
    assert await text(min_tokens=8) == "abababab"


async def test_special_tokens_are_shown_if_they_are_wanted(client, tokenizer):
    body = {"prompt": "x", "max_tokens": 3, "temperature": 0, "logit_bias": {"1": 100}}
    assert (await complete(client, **body))["choices"][0]["text"] == ""
    shown = await complete(client, **body, skip_special_tokens=False)
    assert shown["choices"][0]["text"] == "<s>" * 3


async def test_a_null_prompt_is_the_end_of_a_text(client):
    reply = await complete(client, prompt=None, echo=True, max_tokens=0)
    assert (reply["choices"][0]["text"], reply["usage"]["prompt_tokens"]) == ("</s>", 1)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"max_tokens": 0}, "without echo"),
        ({"n": 3, "best_of": 2}, "best_of is 2, less than n"),
        ({"best_of": 2, "stream": True}, "cannot be streamed"),
        ({"prompt_logprobs": 1, "stream": True}, "not streamed"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens is 9"),
        ({"logit_bias": {"x": 1}}, "'x'"),
        ({"logit_bias": {"5": 101}}, "100"),
        ({"logit_bias": {str(10**40): 1}}, "token ids"),
        ({"logit_bias": {"271": 1, "272": 1}}, "logit_bias has token id 272"),
        ({"stop_token_ids": [10**40]}, "stop_token_ids"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"suffix": "."}, "suffix"),
    ],
)
async def test_what_cannot_be_done_is_said(client, body, words):
    error = (await complete(client, 400, prompt="x", **body))["error"]
    assert words in error["message"] or words == error["param"]
    assert error["type"] == "invalid_request_error"


async def test_a_prompt_that_leaves_no_room_is_refused_with_the_numbers(client):
    error = (await complete(client, 400, prompt="x" * 250, max_tokens=20))["error"]
    assert error["code"] == "context_length_exceeded"
    assert all(number in error["message"] for number in ("256", "270", "250", "20"))


@pytest.mark.parametrize(("stream", "best_of"), [(False, None), (False, 3), (True, None)])
async def test_nothing_goes_on_for_a_client_that_has_gone(serve, make_engine, stream, best_of):
    engine = await make_engine()
    served = await serve(engine)
    body = {"model": "tiny", "prompt": ["a", "b"], "n": 2, "max_tokens": 250, "ignore_eos": True}
    body |= {"stream": stream} | ({"best_of": best_of} if best_of else {})
    async with httpx.AsyncClient(base_url=served.url, timeout=60.0) as client:
        asking = asyncio.create_task(client.post("/v1/completions", json=body))
        while (await engine.stats()).num_live < 2 * (best_of or 2):
            assert not asking.done()
            await asyncio.sleep(0.005)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    while (await engine.stats()).num_live:
        await asyncio.sleep(0.01)
    assert (await engine.stats()).num_sampled_total < 2 * (best_of or 2) * 250
