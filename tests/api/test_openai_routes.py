"""The OpenAI routes as OpenAI's own client sees them."""

import asyncio
import math

import httpx
import openai
import pytest

from sliceserve.engine.messages import Cancel, Open


async def test_chat_answers_with_text_reason_and_usage(serve, fake, client_of):
    served = await serve(fake("Hello, world"))
    answer = await client_of(served).chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "Hi"}]
    )
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.model == "tiny"
    assert answer.system_fingerprint == "fp_ffffffffff"
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content == "Hello, world"
    assert choice.finish_reason == "stop"
    assert choice.logprobs is None
    # "<s>user: Hi\nassistant: " has one special token and 20 bytes; the end token counts.
    assert answer.usage.prompt_tokens == 21
    assert answer.usage.completion_tokens == len("Hello, world") + 1
    assert answer.usage.total_tokens == 21 + 13


@pytest.mark.parametrize("stream", [False, True])
async def test_usage_counts_what_was_cached(serve, fake, client_of, stream):
    engine = fake("Hello")
    engine.num_cached = 3
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    answer = await client_of(await serve(engine)).completions.create(
        model="tiny", prompt=["four", "fours"], n=2, max_tokens=3, **options
    )
    usage = [chunk async for chunk in answer][-1].usage if stream else answer.usage
    # Two prompts; each was in the cache for both of its choices, and counts once.
    assert (usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens) == (9, 6)


async def test_chat_stream_begins_with_the_role_and_ends_with_usage(serve, fake, client_of):
    served = await serve(fake("Hello"))
    stream = await client_of(served).chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "Hi"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    *with_text, last = chunks
    assert "".join(c.choices[0].delta.content or "" for c in with_text) == "Hello"
    assert [c.choices[0].finish_reason for c in with_text] == [None] * (len(with_text) - 1) + [
        "stop"
    ]
    assert all(chunk.usage is None for chunk in with_text)
    assert last.choices == []
    assert last.usage.completion_tokens == 6


async def test_max_tokens_ends_with_length(serve, fake, client_of):
    client = client_of(await serve(fake("Hello")))
    answer = await client.completions.create(model="tiny", prompt="x", max_tokens=3)
    assert answer.choices[0].text == "Hel"
    assert answer.choices[0].finish_reason == "length"
    chat = await client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "x"}], max_completion_tokens=2
    )
    assert chat.choices[0].message.content == "He"
    assert chat.choices[0].finish_reason == "length"


async def test_a_stop_string_ends_the_answer_before_it(serve, fake, client_of):
    engine = fake("one, two, three")
    client = client_of(await serve(engine))
    stream = await client.completions.create(
        model="tiny", prompt="x", max_tokens=30, stop=[", t", "three"], stream=True
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].text for c in chunks) == "one"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert len(engine.sent(Cancel)) == 1


async def test_several_prompts_and_choices_keep_their_order(serve, fake, client_of):
    engine = fake("abc")
    client = client_of(await serve(engine))
    answer = await client.completions.create(
        model="tiny", prompt=["x", "yy"], n=2, seed=7, max_tokens=5
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert {choice.text for choice in answer.choices} == {"abc"}
    assert answer.usage.prompt_tokens == 3
    assert answer.usage.completion_tokens == 16
    opened = engine.sent(Open)
    assert [(o.num_prompt, o.sampling.seed) for o in opened] == [(1, 7), (1, 8), (2, 7), (2, 8)]


async def test_token_ids_are_a_prompt_as_they_are(serve, fake, client_of):
    engine = fake("abc")
    client = client_of(await serve(engine))
    await client.completions.create(model="tiny", prompt=[5, 6, 7])
    await client.completions.create(model="tiny", prompt=[[5, 6], [7]])
    assert [o.prompt for o in engine.sent(Open)] == [[5, 6, 7], [5, 6], [7]]
    assert engine.sent(Open)[0].sampling.max_tokens == 16


async def test_sampling_parameters_reach_the_engine(serve, fake, client_of):
    engine = fake("abc")
    client = client_of(await serve(engine))
    await client.completions.create(
        model="tiny",
        prompt="x",
        temperature=0.7,
        top_p=0.9,
        seed=-1,
        extra_body={"top_k": 40, "min_p": 0.05, "stop_token_ids": [9], "ignore_eos": True},
    )
    sampling = engine.sent(Open)[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.7, 0.9, 40)
    assert (sampling.min_p, sampling.stop_token_ids, sampling.ignore_eos) == (0.05, (9,), True)
    assert sampling.seed == 2**63 - 1
    await client.completions.create(model="tiny", prompt="x")
    assert engine.sent(Open)[1].sampling.temperature == 1.0


async def test_chat_logprobs(serve, fake, client_of):
    client = client_of(await serve(fake("é!")))
    answer = await client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "x"}], logprobs=True, top_logprobs=2
    )
    content = answer.choices[0].logprobs.content
    # Two halves of a character, one character, and the end token.
    assert len(content) == answer.usage.completion_tokens == 4
    assert content[0].bytes is None
    assert (content[2].token, content[2].bytes) == ("!", [33])
    assert content[2].logprob == -0.5
    assert [top.logprob for top in content[2].top_logprobs] == [-0.5, -1.5]


async def test_completion_logprobs_streamed_and_whole_agree(serve, fake, client_of):
    client = client_of(await serve(fake("abc")))
    request = {"model": "tiny", "prompt": "x", "logprobs": 1}
    whole = (await client.completions.create(**request)).choices[0].logprobs
    assert whole.tokens == ["a", "b", "c", "</s>"]
    assert whole.text_offset == [0, 1, 2, 3]
    assert whole.token_logprobs == [-0.5] * 4
    assert whole.top_logprobs[0] == {"a": -0.5}
    stream = await client.completions.create(**request, stream=True)
    parts = [chunk.choices[0].logprobs async for chunk in stream]
    assert [offset for part in parts for offset in part.text_offset] == whole.text_offset
    assert [token for part in parts for token in part.tokens] == whole.tokens


async def test_roles_and_parts_reach_the_template(serve, fake, client_of, tokenizer):
    engine = fake("ok")
    client = client_of(await serve(engine))
    await client.chat.completions.create(
        model="tiny",
        messages=[
            {"role": "developer", "content": "Be brief."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None},
            {"role": "tool", "content": "d", "tool_call_id": "1"},
        ],
    )
    text = tokenizer.decode(engine.sent(Open)[0].prompt)
    # The template knows neither developers nor tools.
    result = "<tool_response>\nd\n</tool_response>"
    assert text == f"system: Be brief.\nuser: a\nb\nassistant: c\nuser: {result}\nassistant: "


async def test_models_are_listed_and_found(serve, fake, client_of):
    client = client_of(await serve(fake(), name="org/model"))
    assert [model.id async for model in client.models.list()] == ["org/model"]
    assert (await client.models.retrieve("org/model")).owned_by == "sliceserve"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("org/other")


async def test_a_client_that_goes_away_ends_its_generation(serve, fake, client_of, eventually):
    engine = fake("Hello" * 20)
    engine.pause_after = 3
    client = client_of(await serve(engine))
    stream = await client.completions.create(
        model="tiny", prompt="x", max_tokens=90, n=2, stream=True
    )
    assert (await anext(aiter(stream))).choices[0].text == "H"
    assert engine.num_generating == 2
    await stream.close()
    await eventually(lambda: len(engine.sent(Cancel)) == 2)
    assert engine.num_generating == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_does_not_wait_for_the_first_token_ends_it_too(
    serve, fake, stream, eventually
):
    engine = fake("Hello")
    engine.running.clear()
    served = await serve(engine)
    async with httpx.AsyncClient() as client:
        request = asyncio.create_task(
            client.post(
                f"{served.url}/v1/completions",
                json={"model": "tiny", "prompt": "x", "stream": stream},
            )
        )
        await eventually(lambda: engine.num_generating == 1)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        await eventually(lambda: len(engine.sent(Cancel)) == 1)


async def test_the_real_engine_gives_the_same_text_streamed_or_not(serve, make_engine, client_of):
    client = client_of(await serve(await make_engine()))
    request = {
        "model": "tiny",
        "prompt": "The quick brown fox",
        "max_tokens": 20,
        "temperature": 0.8,
        "seed": 3,
        "logprobs": 2,
        "extra_body": {"ignore_eos": True},
    }
    whole = await client.completions.create(**request)
    stream = await client.completions.create(**request, stream=True)
    text = "".join([chunk.choices[0].text async for chunk in stream])
    assert whole.choices[0].text == text
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == len(whole.choices[0].logprobs.tokens) == 20
    assert all(math.isfinite(p) and p <= 0 for p in whole.choices[0].logprobs.token_logprobs)
    both = await asyncio.gather(
        *(
            client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": "Hi"}],
                max_tokens=8,
                temperature=0,
            )
            for _ in range(4)
        )
    )
    assert len({answer.choices[0].message.content for answer in both}) == 1
