"""LangChain's classes for OpenAI."""

import pytest
from pydantic import BaseModel, Field

langchain_openai = pytest.importorskip("langchain_openai")


class Person(BaseModel):
    """A person who is mentioned."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


def get_weather(city: str) -> str:
    """The weather in a city now."""
    return f"sunny in {city}"


@pytest.fixture(scope="module")
def chat(endpoint):
    return langchain_openai.ChatOpenAI(
        base_url=endpoint.base_url,
        api_key=endpoint.api_key,
        model=endpoint.model,
        temperature=0,
        max_tokens=40,
        # What it asks of OpenAI's own address by default.
        stream_usage=True,
    )


def test_invoke(chat):
    answer = chat.invoke("What is the capital of France?")
    assert "Paris" in answer.content
    assert answer.response_metadata["finish_reason"] in ("stop", "length")
    assert answer.usage_metadata["output_tokens"] > 1


def test_stream(chat):
    chunks = list(chat.stream("What is the capital of France?"))
    assert len([chunk for chunk in chunks if chunk.content]) > 2
    assert "Paris" in "".join(chunk.content for chunk in chunks)
    assert sum(c.usage_metadata["output_tokens"] for c in chunks if c.usage_metadata) > 1


async def test_batches_run_at_once(chat):
    answers = await chat.abatch(["Say hello.", "Say goodbye."], max_tokens=8)
    assert all(answer.content for answer in answers)


def test_bound_tools_are_called(chat):
    answer = chat.bind_tools([get_weather], tool_choice="get_weather").invoke("Weather in Rome?")
    (call, *_) = answer.tool_calls
    assert call["name"] == "get_weather" and isinstance(call["args"]["city"], str)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(chat, method):
    structured = chat.with_structured_output(Person, method=method)
    assert isinstance(structured.invoke("Anna is 30 years old."), Person)


def test_completions(endpoint):
    model = langchain_openai.OpenAI(
        base_url=endpoint.base_url,
        api_key=endpoint.api_key,
        model=endpoint.model,
        temperature=0,
        max_tokens=6,
    )
    assert "Paris" in model.invoke("The capital of France is")
    assert len("".join(model.stream("The capital of France is"))) > 3
