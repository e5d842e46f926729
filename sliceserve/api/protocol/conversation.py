"""What becomes the prompt of a chat: the same wherever there are messages."""

from pydantic import Field, model_validator

from sliceserve.api.protocol.messages import ChatMessage
from sliceserve.api.protocol.parts import Json, Part, Text, excludes, together
from sliceserve.api.protocol.tools import (
    MAX_TOOLS,
    AllowedToolsChoice,
    Tool,
    ToolChoice,
    ToolReference,
)


class TemplateOptions(Part):
    """What a chat template is given besides messages. All but ``tools`` are vLLM's.

    ``add_generation_prompt`` None is true, unless ``continue_final_message`` lets the model go on
    with the last message. ``add_special_tokens`` adds the tokenizer's own to those that the
    template writes.
    """

    RULES = (excludes("continue_final_message", "add_generation_prompt"),)

    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS)
    documents: list[Json] | None = None
    chat_template: Text | None = None
    chat_template_kwargs: Json | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None

    @model_validator(mode="after")
    def _expect_one_end(self) -> "TemplateOptions":
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError("continue_final_message excludes add_generation_prompt")
        return self


class Conversation(TemplateOptions):
    """Messages to be answered, perhaps by calls of ``tools``."""

    RULES = (
        {
            "anyOf": [
                {"properties": {"tool_choice": {"not": {"const": "required"}}}},
                together(tools={"type": "array", "minItems": 1}),
            ]
        },
    )

    messages: list[ChatMessage] = Field(min_length=1)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _expect_tools(self) -> "Conversation":
        if self.tool_choice == "required" and not self.tools:
            raise ValueError("tool_choice required needs tools")
        return self

    def expect_consistent(self) -> None:
        super().expect_consistent()
        known = {tool.function.name for tool in self.tools or ()}
        for name in self.chosen_names:
            if name not in known:
                raise ValueError(f"tool_choice names '{name}', which is not among the tools")

    @property
    def chosen_names(self) -> list[str]:
        """Functions that ``tool_choice`` names."""
        match self.tool_choice:
            case ToolReference() as chosen:
                return [chosen.function.name]
            case AllowedToolsChoice() as chosen:
                return [tool.function.name for tool in chosen.allowed_tools.tools]
        return []

    @property
    def callable_tools(self) -> list[Tool]:
        """Those that may be called now."""
        if self.tool_choice == "none":
            return []
        names = self.chosen_names
        return [tool for tool in self.tools or () if not names or tool.function.name in names]

    @property
    def must_call(self) -> bool:
        """Whether the answer is to be a call."""
        if isinstance(self.tool_choice, AllowedToolsChoice):
            return self.tool_choice.allowed_tools.mode == "required"
        return self.tool_choice == "required" or isinstance(self.tool_choice, ToolReference)

    @property
    def may_call_several(self) -> bool:
        return self.parallel_tool_calls is not False and not isinstance(
            self.tool_choice, ToolReference
        )
