"""Calls of functions in a model's text: how they are written, found, asked for and enforced.

Text alone: no HTTP, and no request types.
"""

from sliceserve.api.tool_parsing.describing import without_template
from sliceserve.api.tool_parsing.formats import FORMATS, ToolFormat, format_of_template
from sliceserve.api.tool_parsing.grammar import Function, forced_calls, well_formed_calls
from sliceserve.api.tool_parsing.parser import Call, CallDelta, ToolParser, whole

__all__ = [
    "FORMATS",
    "Call",
    "CallDelta",
    "Function",
    "ToolFormat",
    "ToolParser",
    "forced_calls",
    "format_of_template",
    "well_formed_calls",
    "whole",
    "without_template",
]
