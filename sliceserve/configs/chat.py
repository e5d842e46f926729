"""How conversations become prompts, and answers become calls of functions."""

from dataclasses import dataclass
from typing import Literal, get_args

from sliceserve.configs.settings import setting
from sliceserve.configs.validation import expect_one_of

ToolCallParserName = Literal["auto", "hermes", "llama3_json", "mistral"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatConfig:
    """Chat templates and tools. A template that a request brings runs in a sandbox, but may take
    any time."""

    template: str | None = setting(
        None,
        "A file with a chat template, or the template itself.",
        "Chat",
        flag="chat-template",
        shown="the model's own",
    )
    trust_request_template: bool = setting(
        False,
        "Let requests bring a chat template of their own.",
        "Chat",
        flag="trust-request-chat-template",
    )
    tool_call_parser: ToolCallParserName = setting(
        "auto",
        "How the model writes calls of functions; auto goes by its chat template.",
        "Chat",
    )

    def __post_init__(self) -> None:
        expect_one_of("tool_call_parser", get_args(ToolCallParserName), self.tool_call_parser)
