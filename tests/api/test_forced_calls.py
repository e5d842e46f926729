"""A model that knows nothing still calls functions well, where the answer is to be a call."""

import json
import shutil
from dataclasses import replace

import httpx
import jsonschema
import openai
import pytest
import torch
from pydantic import BaseModel

from sliceserve.api.app import create_app
from sliceserve.api.backend import Backend
from sliceserve.client.sdk import AsyncSplitLLM
from sliceserve.configs import ChatConfig, ClientConfig, CodecConfig, ModelConfig

# Short, so that prompts leave room: how tools are described is not the matter here.
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}"
    "\n{% endfor %}{% if tools %}{{ tools | length }}{% endif %}"
)
SCHEMAS = {
    "set_light": {
        "type": "object",
        "properties": {
            "room": {"enum": ["kitchen", "hall"]},
            "level": {"$ref": "#/$defs/Level"},
        },
        "required": ["room", "level"],
        "additionalProperties": False,
        "$defs": {"Level": {"type": "integer", "minimum": 0, "maximum": 9}},
    },
    "all_off": {"type": "object", "properties": {}, "additionalProperties": False},
}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": schema}}
    for name, schema in SCHEMAS.items()
]
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Lights!"}], "tools": TOOLS}


@pytest.fixture(scope="session")
def model_path(model_path, tmp_path_factory):
    """In place of the folder's own: the same with room for longer answers."""
    path = tmp_path_factory.mktemp("longer") / "model"
    shutil.copytree(model_path, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2048}))
    return path


def client_over(backend, **chat):
    """OpenAI's client of an app without a socket."""
    backend = replace(backend, chat=ChatConfig(template=TEMPLATE, **chat))
    transport = httpx.ASGITransport(create_app(backend))
    return openai.AsyncOpenAI(
        base_url="http://tiny/v1",
        api_key="none",
        max_retries=0,
        http_client=httpx.AsyncClient(transport=transport),
    )


@pytest.fixture
async def thin(backend_of, make_engine):
    # A row at a time is no work for two threads, which only wait for each other.
    torch.set_num_threads(1)
    return backend_of(await make_engine())


@pytest.fixture
async def split(serve, make_engine, model_path):
    """As a gateway has it: the first layers here, the others behind a socket."""
    torch.set_num_threads(1)
    served = await serve(await make_engine())
    config = ClientConfig(
        server=served.url,
        model=ModelConfig(model=str(model_path), dtype="float32", device="cpu"),
        split=3,
        codec=CodecConfig(name="float32"),
    )
    async with AsyncSplitLLM(config=config) as llm:
        yield Backend(
            models=("tiny",),
            fingerprint=llm.head.info.fingerprint,
            tokenizer=llm.tokenizer,
            generator=llm.generator,
            engine=None,
            stats=llm.head.stats,
        )


def expect_valid(calls):
    assert calls
    for call in calls:
        assert call.type == "function"
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])


@pytest.mark.parametrize("form", ["hermes", "llama3_json", "mistral"])
async def test_required_calls_are_valid_in_every_format(thin, form):
    async with client_over(thin, tool_call_parser=form) as client:
        answer = await client.chat.completions.create(
            **CHAT, tool_choice="required", parallel_tool_calls=False, n=2, seed=1
        )
        for choice in answer.choices:
            assert choice.finish_reason == "tool_calls"
            assert choice.message.content is None
            assert len(choice.message.tool_calls) == 1
            expect_valid(choice.message.tool_calls)


async def test_a_named_call_on_a_server(thin):
    await expect_the_same_whole_and_streamed(thin)


async def test_a_named_call_on_a_gateway(split):
    await expect_the_same_whole_and_streamed(split)


async def expect_the_same_whole_and_streamed(backend):
    async with client_over(backend) as client:
        wanted = {
            **CHAT,
            "tool_choice": {"type": "function", "function": {"name": "set_light"}},
            "seed": 5,
        }
        whole = (await client.chat.completions.create(**wanted)).choices[0]
        expect_valid(whole.message.tool_calls)
        assert whole.message.tool_calls[0].function.name == "set_light"
        async with client.chat.completions.stream(**wanted) as stream:
            async for _ in stream:
                pass
            streamed = (await stream.get_final_completion()).choices[0]
    assert streamed.finish_reason == whole.finish_reason == "tool_calls"
    assert streamed.message.content in (None, "")
    functions = [(c.function.name, c.function.arguments) for c in whole.message.tool_calls]
    assert functions == [
        (c.function.name, c.function.arguments) for c in streamed.message.tool_calls
    ]


async def test_several_calls_and_those_that_are_allowed(thin):
    only = {"type": "function", "function": {"name": "all_off"}}
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [only]}}
    async with client_over(thin) as client:
        answer = await client.chat.completions.create(
            **CHAT, tool_choice=choice, max_tokens=250, extra_body={"ignore_eos": True}
        )
    *calls, _ = answer.choices[0].message.tool_calls
    assert len(calls) > 1
    assert len({call.id for call in calls}) == len(calls)
    assert {call.function.name for call in calls} == {"all_off"}
    expect_valid(calls)


async def test_a_strict_function_is_called_well_whenever_it_is_called(thin):
    """What may be text begins with a marker here, for the model knows no better."""

    class Light(BaseModel):
        level: int

    tool = openai.pydantic_function_tool(Light)
    async with client_over(thin, tool_call_parser="llama3_json") as client:
        bias = {str(thin.tokenizer.encode("{")[0]): 100}
        answer = await client.chat.completions.parse(
            model="tiny",
            messages=CHAT["messages"],
            tools=[tool],
            parallel_tool_calls=False,
            logit_bias=bias,
        )
    call = answer.choices[0].message.tool_calls[0]
    assert isinstance(call.function.parsed_arguments, Light)


async def test_a_conversation_goes_on_after_a_call(thin):
    async with client_over(thin) as client:
        messages = list(CHAT["messages"])
        answer = await client.chat.completions.create(
            **CHAT, tool_choice="required", parallel_tool_calls=False, seed=1
        )
        messages.append(answer.choices[0].message)
        for call in answer.choices[0].message.tool_calls:
            messages.append({"role": "tool", "tool_call_id": call.id, "content": "done"})
        answer = await client.chat.completions.create(
            **{**CHAT, "messages": messages}, max_tokens=8, tool_choice="none"
        )
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].finish_reason in ("stop", "length")
