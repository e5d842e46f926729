"""Let the model call a function, and have it answer with the result, through OpenAI's client.

sliceserve serve                   # or besides, on the device: sliceserve gateway
pip install openai
python examples/chat_with_tools.py [http://127.0.0.1:8000]
"""

import json
import sys

from openai import OpenAI
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionMessageParam

CLIMBED = {"Mont Blanc": 1786, "Mount Everest": 1953, "Kilimanjaro": 1889}


def year_of_first_ascent(mountain: str) -> str:
    return f"{mountain} was climbed for the first time in {CLIMBED[mountain]}."


TOOL: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {
        "name": "year_of_first_ascent",
        "description": "The year in which a mountain was climbed for the first time.",
        "parameters": {
            "type": "object",
            "properties": {"mountain": {"type": "string", "enum": list(CLIMBED)}},
            "required": ["mountain"],
            "additionalProperties": False,
        },
    },
}

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
client = OpenAI(base_url=f"{url}/v1", api_key="none")
model = client.models.list().data[0].id
question = "In which year was Mount Everest climbed for the first time?"
messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": question}]
# A large model may be left to decide, with tool_choice="auto"; a small one is told to call, once.
turn = client.chat.completions.create(
    model=model,
    messages=messages,
    tools=[TOOL],
    tool_choice="required",
    parallel_tool_calls=False,
    temperature=0,
)
for call in turn.choices[0].message.tool_calls or []:
    assert call.type == "function"
    result = year_of_first_ascent(**json.loads(call.function.arguments))
    print(f"{call.function.name}({call.function.arguments}) -> {result}")
    messages.append({"role": "assistant", "tool_calls": [call.to_dict()]})  # type: ignore
    messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
answer = client.chat.completions.create(
    model=model, messages=messages, tools=[TOOL], tool_choice="none", max_tokens=60, temperature=0
)
print(answer.choices[0].message.content)
