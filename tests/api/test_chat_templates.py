"""Which template writes a prompt, and what requests can tell it."""

from dataclasses import replace

import pytest
from asgi_client import asgi_client

from sliceserve.api.conversation import make_prompt
from sliceserve.api.protocol.conversation import Conversation
from sliceserve.configs import ChatConfig
from sliceserve.models.chat_template import with_template_read
from sliceserve.models.tokenizer import Tokenizer

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
TOOLS = [{"type": "function", "function": {"name": "f", "strict": False}}]
# Shows all that it is given, and knows developers and tools.
TELLTALE = (
    "{% for m in messages %}{{ m | tojson }}{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}{% if documents %}{{ documents[0].text }}"
    "{% endif %}{{ mood }}{% if add_generation_prompt %}>{% endif %}{# 'developer' #}"
)


@pytest.fixture
def backend(backend_of, fake):
    return backend_of(fake("ok", max_model_len=4096))


@pytest.fixture
def prompt_of(backend):
    """The text that becomes of a request."""

    def make(template=TELLTALE, **fields):
        chosen = replace(backend, chat=ChatConfig(template=template))
        conversation = Conversation(**{"messages": CHAT["messages"], **fields})
        return backend.tokenizer.decode(make_prompt(conversation, chosen).token_ids)

    return make


def test_messages_reach_a_template_with_all_their_fields(prompt_of):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": [1]}'}}
    broken = {"id": "2", "type": "function", "function": {"name": "f", "arguments": '{"a": '}}
    text = prompt_of(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}], "name": "Ann"},
            {"role": "assistant", "content": None, "tool_calls": [call, broken]},
            {"role": "tool", "content": "d", "tool_call_id": "1"},
            {"role": "assistant", "content": None, "refusal": "No."},
        ]
    )
    assert text == (
        '{"role": "developer", "content": "Be brief."}'
        '{"role": "user", "content": "a", "name": "Ann"}'
        '{"role": "assistant", "content": "", "tool_calls": ['
        '{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": [1]}}}, '
        '{"id": "2", "type": "function", "function": {"name": "f", "arguments": "{\\"a\\": "}}]}'
        '{"role": "tool", "content": "d", "tool_call_id": "1"}'
        '{"role": "assistant", "content": "No."}>'
    )


def test_what_a_request_tells_the_template(prompt_of):
    hi = '{"role": "user", "content": "Hi"}'
    assert prompt_of() == f"{hi}>"
    assert prompt_of(add_generation_prompt=False) == hi
    assert prompt_of(chat_template_kwargs={"mood": "happy"}) == f"{hi}happy>"
    assert prompt_of(documents=[{"title": "t", "text": "facts"}]) == f"{hi}facts>"
    assert prompt_of(tools=TOOLS) == f'{hi}[{{"type": "function", "function": {{"name": "f"}}}}]>'


def test_the_last_message_can_go_on(prompt_of):
    messages = [*CHAT["messages"], {"role": "assistant", "content": "I am"}]
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + '!' }}{% endfor %}"
    assert prompt_of(template, messages=messages) == "user: Hi!assistant: I am!"
    goes_on = prompt_of(template, messages=messages, continue_final_message=True)
    assert goes_on == "user: Hi!assistant: I am"


def test_templates_by_name(backend):
    """As some models ship them: one for conversations with tools."""
    templates = {"default": "plain", "tool_use": "{{ tools | length }} tools"}
    tokenizer = Tokenizer(backend.tokenizer._pretrained)
    old, tokenizer._pretrained.chat_template = tokenizer._pretrained.chat_template, templates
    try:
        for tools, text in ((None, "plain"), (TOOLS, "1 tools")):
            conversation = Conversation(messages=CHAT["messages"], tools=tools)
            prompt = make_prompt(conversation, replace(backend, tokenizer=tokenizer))
            assert tokenizer.decode(prompt.token_ids) == text
    finally:
        tokenizer._pretrained.chat_template = old


async def test_a_template_by_file(backend, tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text("{{ raise_exception('no ' + messages[0].content) }}")
    config = with_template_read(ChatConfig(template=str(file)))
    async with asgi_client(replace(backend, chat=config)) as client:
        response = await client.post("/v1/chat/completions", json=CHAT)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["message"]) == (
        "messages",
        "the chat template cannot render these messages: no Hi",
    )


@pytest.mark.parametrize(
    ("template", "status", "reason"),
    [
        ("{{ 'Hello' }}", 200, ""),
        ("{% if %}", 400, "Expected an expression"),
        ("{{ ''.__class__.__mro__ }}", 400, "unsafe"),
        ("{{ messages[0]['content'] / 0 }}", 400, "unsupported operand"),
    ],
)
async def test_a_request_may_bring_a_template_where_it_is_trusted(
    backend, template, status, reason
):
    trusting = replace(backend, chat=ChatConfig(trust_request_template=True))
    async with asgi_client(trusting) as client:
        response = await client.post(
            "/v1/chat/completions", json={**CHAT, "chat_template": template}
        )
    assert response.status_code == status, response.text
    assert reason in response.text
