"""What /tokenize and /detokenize accept: the fields of vLLM's endpoints of these names."""

from pydantic import Field, model_validator

from sliceserve.api.protocol.conversation import TemplateOptions
from sliceserve.api.protocol.messages import ChatMessage
from sliceserve.api.protocol.parts import Part, Text, TokenId

# Either kind of prompt, as JSON Schema says it.
_ONE_PROMPT = [
    {
        "required": ["prompt"],
        "properties": {"prompt": {"type": "string"}, "messages": {"type": "null"}},
    },
    {
        "required": ["messages"],
        "properties": {"messages": {"type": "array"}, "prompt": {"type": "null"}},
    },
]


class TokenizeRequest(TemplateOptions):
    """Body of POST /tokenize: a prompt, or the messages of a chat.

    ``add_special_tokens`` is what the tokenizer adds by itself: true for a prompt unless said
    otherwise, false for messages, whose template has written them.
    """

    RULES = ({"oneOf": _ONE_PROMPT},)

    model: Text | None = None
    prompt: Text | None = None
    messages: list[ChatMessage] | None = Field(None, min_length=1)
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _expect_one_prompt(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("send either a prompt or messages")
        return self


class DetokenizeRequest(Part):
    """Body of POST /detokenize."""

    model: Text | None = None
    tokens: list[TokenId]
