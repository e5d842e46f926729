"""Whatever a random model says under a guide follows it, in every company and on every server."""

import json
import random
import re
import sys
from concurrent.futures import Future

import pytest
from driving import SplitRun, finish
from guided import byte_tokenizer, tiny_model  # noqa: F401
from msgspec.structs import replace

from sliceserve import guides
from sliceserve.configs import SamplingParams
from sliceserve.engine.messages import Cancel, Open
from sliceserve.guides import GuideError

pytest.importorskip("llguidance")
validate = pytest.importorskip("jsonschema").validate

TOKENIZER = byte_tokenizer()
END = TOKENIZER.token_to_id("<|end|>")
PROMPT = [40, 41, 42]

WORD = {"type": "string", "maxLength": 6}
DIGIT = {"type": "integer", "minimum": -9, "maximum": 9}
SCHEMAS = [
    {"type": "boolean"},
    {"enum": ["red", "green", 7, None, {"a": [1]}]},
    {"const": {"x": "é\n"}},
    {"type": "string", "pattern": "^[a-f]{2}-[0-9]{3}$"},
    {"type": "string", "format": "date"},
    {"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.25},
    {"type": "array", "items": DIGIT, "minItems": 2, "maxItems": 4},
    {"type": "array", "prefixItems": [WORD, {"type": "null"}], "items": False, "minItems": 2},
    {"anyOf": [DIGIT, {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}]},
    {
        "type": "object",
        "properties": {"name": WORD, "size": DIGIT, "more": {"$ref": "#/$defs/more"}},
        "required": ["size", "more"],
        "additionalProperties": False,
        "$defs": {"more": {"type": "object", "properties": {"on": {"type": "boolean"}},
                           "additionalProperties": False}},
    },
    {
        "type": "object",
        "properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}, "id": DIGIT},
        "required": ["id"],
        "additionalProperties": False,
    },
    {"allOf": [{"type": "integer", "minimum": 0}, {"maximum": 50, "multipleOf": 5}]},
]  # fmt: skip
# Small to write, and too large to compile: 3 to the power of 12 combinations.
HUGE = {
    "allOf": [
        {"anyOf": [{"properties": {f"k{i}_{j}": {"type": "integer"}}} for j in range(3)]}
        for i in range(12)
    ]
}
# So many that may come next are too many to follow.
MANY = {
    "type": "object",
    "properties": {f"p{i}": {"type": "string"} for i in range(1500)},
    "additionalProperties": False,
}
PATTERN = r"(ab|cd){2,5}-[0-9]{1,3}"
CHOICES = ["red", "green", "greenish", "bl\tue", "é"]


def follows(text, case):
    kind, form = case
    if kind == "schema":
        validate(json.loads(text), form)
    elif kind == "regex":
        assert re.fullmatch(form, text)
    else:
        assert text in form


CASES = [
    *(("schema", schema) for schema in SCHEMAS),
    ("regex", PATTERN),
    ("choice", CHOICES),
]
MAKE = {"schema": guides.json_schema, "regex": guides.regex, "choice": guides.choice}


def sampling(case, seed=0, **params):
    kind, form = case
    params = {"max_tokens": 150, "temperature": 1.0, "seed": seed, **params}
    return SamplingParams(guide=MAKE[kind](form), **params)


def text_of(tokens):
    return TOKENIZER.decode(tokens)


def compiled(engine, *params):
    """So that opening has an answer at once."""
    for wanted in params:
        engine._grammars.compile(wanted.guide).exception()
    return engine


def run_all(make_engine, requests, kinds=(0, 1, 3), num_tokens=4096, **tail):
    """``requests``: prompt and sampling by name, cut by ``kinds`` in turn. Tokens by name."""
    heads = {cut: make_engine(stop=cut, num_tokens=4096) for cut in kinds if cut}
    engine = make_engine(cuts=(1, 3), num_tokens=num_tokens, **tail)
    run = SplitRun(compiled(engine, *(p for _, p in requests.values() if p.guide)), heads)
    for i, (name, (prompt, params)) in enumerate(requests.items()):
        run.open(name, prompt, kinds[i % len(kinds)], params)
    run.run(5000)
    return run, engine.stats()


def all_cases():
    """Each case from two prompts, with unguided ones among them."""
    rng = random.Random(3)
    requests = {}
    for i, case in enumerate(CASES):
        for seed in (i, 100 + i):
            prompt = [rng.randrange(256) for _ in range(rng.randrange(1, 20))]
            requests[f"{i}:{seed}"] = prompt, sampling(case, seed)
        free = SamplingParams(max_tokens=12, temperature=0.8, seed=i, ignore_eos=True)
        requests[f"free:{i}"] = [7, i], free
    return requests


@pytest.fixture(scope="module")
def roomy():
    """What one test has found, for the others."""
    return {}


def roomy_run(make_engine, roomy):
    if not roomy:
        run, _ = run_all(make_engine, all_cases())
        roomy.update(tokens=run.tokens, reasons=run.finish_reasons)
    return roomy


def test_every_answer_follows_its_guide_split_or_not(make_engine, roomy):
    found = roomy_run(make_engine, roomy)
    num_ended = 0
    for name, tokens in found["tokens"].items():
        if name.startswith("free"):
            continue
        case = CASES[int(name.split(":")[0])]
        if found["reasons"][name] == "stop":
            assert tokens[-1] == END
            follows(text_of(tokens[:-1]), case)
            num_ended += 1
    # A recursive schema may go on for longer than is allowed; the others are short.
    assert num_ended >= 2 * len(CASES) - 2


def test_a_guide_changes_nobody_elses_tokens(make_engine, roomy):
    found = roomy_run(make_engine, roomy)
    free = {name: r for name, r in all_cases().items() if name.startswith("free")}
    alone, _ = run_all(make_engine, free, kinds=(3, 0))
    assert alone.tokens == {name: found["tokens"][name] for name in free}


@pytest.mark.parametrize("kinds", [(0,), (1, 3)])
def test_preempted_and_in_other_company_the_same_tokens(make_engine, roomy, kinds):
    found = roomy_run(make_engine, roomy)
    run, stats = run_all(make_engine, all_cases(), kinds, num_tokens=480, max_tokens_per_step=64)
    assert stats.num_preempted_total > 0
    assert run.tokens == found["tokens"]


def test_another_server_goes_on_from_the_tokens_so_far(make_engine, roomy):
    found = roomy_run(make_engine, roomy)
    for i, (name, (prompt, params)) in enumerate(all_cases().items()):
        tokens = found["tokens"][name]
        num_seen = (i * 5) % len(tokens)
        engine = make_engine() if i == 0 else engine  # noqa: F821
        if params.guide:
            compiled(engine, params)
        opened = engine.handle(
            Open(
                request_id=name,
                num_prompt=len(prompt),
                prompt=prompt,
                outputs=tokens[:num_seen],
                sampling=params,
            )
        )
        assert opened[0].error is None
        rest = [t.token_id for o in finish(engine) for t in o.tokens]
        assert tokens[:num_seen] + rest == tokens


def generate(engine, params, prompt=PROMPT):
    """Tokens and finish reason of one request."""
    if params.guide:
        compiled(engine, params)
    engine.handle(Open(request_id="one", num_prompt=len(prompt), prompt=prompt, sampling=params))
    outputs = finish(engine)
    assert outputs[-1].error is None, outputs[-1].error
    return [t.token_id for o in outputs for t in o.tokens], outputs[-1].finish_reason


def test_greedy_takes_the_likeliest_that_is_allowed(make_engine):
    tokens, reason = generate(make_engine(), sampling(CASES[-2], temperature=0.0))
    follows(text_of(tokens[:-1]), CASES[-2])
    assert reason == "stop" and tokens[-1] == END


def test_an_end_is_forced_where_nothing_may_follow_and_waits_where_something_may(make_engine):
    engine = make_engine()
    case = "regex", "ab{0,3}"
    b = TOKENIZER.token_to_id("b")
    for params in (
        sampling(case, min_tokens=4, logit_bias=((b, -100.0),)),
        sampling(case, ignore_eos=True, logit_bias=((b, -100.0),)),
    ):
        tokens, reason = generate(engine, params)
        assert text_of(tokens[:-1]) == "abbb"
        assert (tokens[-1], reason) == (END, "stop")
    short, _ = generate(engine, sampling(case, logit_bias=((b, -100.0),)))
    assert text_of(short[:-1]) == "a"
    # All that may follow is an end: it comes, early or not.
    stopped, _ = generate(engine, sampling(case, min_tokens=9, stop_token_ids=(b,)))
    assert text_of(stopped[:1]) == "a" and stopped[1:] in ([b], [END])


def test_max_tokens_cuts_an_answer_short(make_engine):
    tokens, reason = generate(
        make_engine(), sampling(("regex", "a+"), max_tokens=5, ignore_eos=True)
    )
    assert (text_of(tokens), reason) == ("aaaaa", "length")


def test_logprobs_are_still_the_models_own(make_engine):
    engine = make_engine()
    params = sampling(CASES[-1], logprobs=1, temperature=0.0)
    compiled(engine, params)
    engine.handle(Open(request_id="one", num_prompt=3, prompt=PROMPT, sampling=params))
    guided = finish(engine)[0].tokens[0]
    free = replace(params, guide=None, max_tokens=1)
    engine.handle(Open(request_id="two", num_prompt=3, prompt=PROMPT, sampling=free))
    assert finish(engine)[0].tokens[0].top == guided.top
    assert guided.logprob <= guided.top[0].logprob


@pytest.mark.parametrize(
    ("guide", "words"),
    [
        (guides.json_schema({"type": "objekt"}), "objekt"),
        (guides.from_part(guides.special_token("<|nowhere|>")), "nowhere"),
        ("nonsense", "Expected"),
        (guides.json_schema(HUGE), "too large"),
    ],
)
def test_a_bad_guide_is_refused_alone(make_engine, guide, words):
    engine = make_engine()
    engine.handle(
        Open(request_id="good", num_prompt=3, prompt=PROMPT, sampling=SamplingParams(max_tokens=3))
    )
    params = SamplingParams(guide=guide)
    compiled(engine, params)
    (refused,) = engine.handle(Open(request_id="bad", num_prompt=3, prompt=PROMPT, sampling=params))
    assert (refused.finish_reason, refused.error_code) == ("error", "invalid_request")
    assert refused.opened and re.search(words, refused.error)
    assert "\n" not in refused.error
    assert [o.finish_reason for o in finish(engine) if o.request_id == "good"][-1] == "length"


def test_tokens_that_do_not_follow_the_guide_end_their_request_alone(make_engine):
    engine = make_engine()
    params = sampling(("choice", ["yes"]))
    good = generate(engine, params)
    for name, outputs in (("good", []), ("bad", [END - 1])):
        engine.handle(
            Open(request_id=name, num_prompt=3, prompt=PROMPT, outputs=outputs, sampling=params)
        )
    outputs = finish(engine)
    (bad,) = [o for o in outputs if o.request_id == "bad"]
    assert bad.error_code == "invalid_request" and "grammar" in bad.error
    tokens = [t.token_id for o in outputs if o.request_id == "good" for t in o.tokens]
    assert tokens == good[0]


def test_a_guide_that_takes_too_much_on_the_way_ends_its_request_alone(make_engine):
    engine = make_engine()
    good, bad = sampling(("choice", ["yes"])), sampling(("schema", MANY))
    expected, _ = generate(engine, good)
    compiled(engine, bad)
    assert [o.opened for o in open_some(engine, good=good, bad=bad)] == [True, True]
    outputs = finish(engine)
    end = [o for o in outputs if o.request_id == "bad"][-1]
    assert end.error_code == "invalid_request" and "items" in end.error and "\n" not in end.error
    assert [t.token_id for o in outputs if o.request_id == "good" for t in o.tokens] == expected


class SlowGrammars:
    """Compiles when it is told to."""

    def __init__(self, grammars):
        self._grammars = grammars
        self.waiting = {}

    def compile(self, guide):
        return self.waiting.setdefault(guide, Future())

    def finish(self):
        for guide, future in self.waiting.items():
            try:
                future.set_result(self._grammars.compile(guide).result())
            except GuideError as error:
                future.set_exception(error)

    def close(self):
        self._grammars.close()


def open_some(engine, **params):
    for name, wanted in params.items():
        yield from engine.handle(
            Open(request_id=name, num_prompt=3, prompt=PROMPT, sampling=wanted)
        )


def test_the_engine_goes_on_while_grammars_are_compiled(make_engine):
    engine = make_engine(max_queued=3)
    slow = engine._grammars = SlowGrammars(engine._grammars)
    assert not list(open_some(engine, yes=sampling(("choice", ["yes"]))))
    assert not list(open_some(engine, bad=SamplingParams(guide="nonsense")))
    assert not list(open_some(engine, gone=sampling(("choice", ["no"]))))
    (refused,) = open_some(engine, many=sampling(("choice", ["perhaps"])))
    assert refused.error_code == "overloaded"
    (opened,) = open_some(engine, free=SamplingParams(max_tokens=3))
    assert opened.opened
    assert finish(engine)[-1].finish_reason == "length"
    assert "yes" in engine and engine.seconds_to_work() > 0
    engine.handle(Cancel("gone"))
    slow.finish()
    outputs = finish(engine)
    assert [o.request_id for o in outputs if o.opened] == ["yes", "bad"]
    assert next(o for o in outputs if o.request_id == "bad").error_code == "invalid_request"
    tokens = [t.token_id for o in outputs if o.request_id == "yes" for t in o.tokens]
    assert text_of(tokens[:-1]) == "yes"
    assert engine.seconds_to_work() is None


def test_an_engine_without_llguidance_says_so(make_engine, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    engine = make_engine()
    params = SamplingParams(guide="x")
    compiled(engine, params)
    (refused,) = open_some(engine, one=params)
    assert refused.error_code == "invalid_request" and "pip install llguidance" in refused.error


def test_as_many_grammars_are_kept_as_programs_have(make_engine):
    engine = make_engine()
    for i in range(100):
        compiled(engine, sampling(("choice", [str(i)])))
    assert len(engine._grammars._kept) == 64
