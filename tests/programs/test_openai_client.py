"""OpenAI's own Python client."""

import asyncio
import json
from typing import Literal

import openai
import pytest
from pydantic import BaseModel

CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city now.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


class Answer(BaseModel):
    capital: Literal["Paris", "London", "Rome"]
    is_large: bool


@pytest.fixture(scope="module")
def client(endpoint):
    with openai.OpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key) as client:
        yield client


@pytest.fixture(scope="module")
def options(endpoint):
    """What most calls have in common."""
    return {"model": endpoint.model, "temperature": 0, "max_completion_tokens": 16}


def test_models(client, endpoint):
    assert [model.id for model in client.models.list()] == [endpoint.model]
    assert client.models.retrieve(endpoint.model).object == "model"
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.models.retrieve("gpt-4o")


def test_a_chat(client, options):
    answer = client.chat.completions.create(messages=CAPITAL, n=2, **options)
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert "Paris" in choice.message.content
        assert (choice.message.role, choice.message.tool_calls) == ("assistant", None)
        assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_chat_that_is_streamed(client, options):
    whole = client.chat.completions.create(messages=CAPITAL, **options)
    stream = client.chat.completions.create(
        messages=CAPITAL, stream=True, stream_options={"include_usage": True}, **options
    )
    *chunks, last = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == (
        whole.choices[0].message.content
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert len({chunk.id for chunk in chunks}) == 1
    assert last.choices == []
    assert last.usage.completion_tokens == whole.usage.completion_tokens


async def test_many_at_once_without_threads(endpoint, options):
    async with openai.AsyncOpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key) as client:

        async def count_to(number):
            prompt = f"1, 2, 3, 4, {number},"
            stream = await client.completions.create(
                model=endpoint.model, prompt=prompt, max_tokens=6, temperature=0, stream=True
            )
            return "".join([chunk.choices[0].text async for chunk in stream])

        texts = await asyncio.gather(*(count_to(number) for number in range(5, 11)))
    assert all(any(figure in text for figure in "0123456789") for text in texts)


def test_logprobs_of_tokens_and_of_the_prompt(client, endpoint, options):
    answer = client.chat.completions.create(
        messages=CAPITAL, logprobs=True, top_logprobs=3, **options
    )
    for token in answer.choices[0].logprobs.content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == max(other.logprob for other in token.top_logprobs) <= 0
    echoed = client.completions.create(
        model=endpoint.model, prompt="The capital of France is Paris", echo=True, logprobs=1,
        max_tokens=1, temperature=0,
    )  # fmt: skip
    logprobs = echoed.choices[0].logprobs
    assert "".join(logprobs.tokens) == echoed.choices[0].text
    assert logprobs.token_logprobs[0] is None
    assert all(logprob <= 0 for logprob in logprobs.token_logprobs[1:])


def test_sampling_is_reproducible_and_biased(client, endpoint):
    options = {"model": endpoint.model, "prompt": "Once upon a", "max_tokens": 6, "seed": 5}
    first, again = (client.completions.create(**options).choices[0].text for _ in range(2))
    assert first == again
    biased = client.completions.create(**options, logit_bias={"28": 100}, logprobs=0)
    assert len(set(biased.choices[0].logprobs.tokens)) == 1


@pytest.mark.parametrize("choice", ["required", "named"])
def test_a_tool_is_called(client, options, choice):
    named = {"type": "function", "function": {"name": "get_weather"}}
    question = {"role": "user", "content": "What is the weather in Paris?"}
    answer = client.chat.completions.create(
        messages=[question], tools=[WEATHER], tool_choice=named if choice == "named" else choice,
        parallel_tool_calls=False, **options | {"max_completion_tokens": 60},
    )  # fmt: skip
    (call,) = answer.choices[0].message.tool_calls[:1]
    assert call.function.name == "get_weather"
    assert isinstance(json.loads(call.function.arguments)["city"], str)
    # The conversation goes on with what the tool has said.
    result = {"role": "tool", "tool_call_id": call.id, "content": "It is sunny in Paris."}
    turn = answer.choices[0].message.model_dump(exclude_none=True)
    final = client.chat.completions.create(
        messages=[question, turn, result], tools=[WEATHER], tool_choice="none", **options
    )
    assert final.choices[0].message.content


def test_a_tool_is_called_in_a_stream(client, options):
    question = {"role": "user", "content": "What is the weather in Paris?"}
    with client.chat.completions.stream(
        messages=[question], tools=[WEATHER], tool_choice="required", parallel_tool_calls=False,
        **options | {"max_completion_tokens": 100},
    ) as stream:  # fmt: skip
        deltas = [e for e in stream if e.type == "tool_calls.function.arguments.delta"]
        final = stream.get_final_completion()
    call = final.choices[0].message.tool_calls[0]
    pieces = [event.arguments_delta for event in deltas if event.index == 0]
    assert len(pieces) > 1 and "".join(pieces) == call.function.arguments
    assert "city" in json.loads(call.function.arguments)


def test_an_answer_is_parsed_into_a_model(client, options):
    answer = client.chat.completions.parse(
        messages=CAPITAL, response_format=Answer, **options | {"max_completion_tokens": 40}
    )
    assert isinstance(answer.choices[0].message.parsed, Answer)


def test_an_answer_is_a_json_object(client, options):
    question = [{"role": "user", "content": "Say that you are well, as JSON."}]
    answer = client.chat.completions.create(
        messages=question, response_format={"type": "json_object"},
        **options | {"max_completion_tokens": 32},
    )  # fmt: skip
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)
    else:
        assert answer.choices[0].message.content.lstrip().startswith("{")


def test_responses(client, endpoint):
    options = {"model": endpoint.model, "temperature": 0, "max_output_tokens": 16}
    answer = client.responses.create(
        instructions="Be short.", input="What is the capital of France?", **options
    )
    assert "Paris" in answer.output_text
    with client.responses.stream(input=CAPITAL, **options) as stream:
        events = list(stream)
        final = stream.get_final_response()
    pieces = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(pieces) == final.output_text
    assert events[0].type == "response.created"
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_errors_are_those_that_the_client_knows(client, endpoint, options):
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(messages=CAPITAL, **options | {"model": "gpt-4o"})
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="maximum context length") as long:
        client.completions.create(model=endpoint.model, prompt=[7] * 9000, max_tokens=5)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="top_p") as bad:
        client.chat.completions.create(messages=CAPITAL, top_p=3, **options)
    assert bad.value.param == "top_p"
    stranger = client.with_options(api_key="sk-wrong")
    with pytest.raises(openai.AuthenticationError):
        stranger.chat.completions.create(messages=CAPITAL, **options)
