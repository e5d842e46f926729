"""Prompts as lm-evaluation-harness writes them, answers as it reads them, and code in a box."""

import gzip
import json
import os
import time
from pathlib import Path

import pytest

from sliceserve.evaluation.errors import EvaluationError
from sliceserve.evaluation.sandbox import runs_without_error
from sliceserve.evaluation.tasks import NUM_SHOTS, TASKS, find_tasks

# Where the public files lie, for the tests that need them.
DATA = Path(os.environ.get("SLICESERVE_EVAL_DATA", "eval-data"))


def write(folder, name, lines):
    (folder / TASKS[name].file).write_text("".join(json.dumps(line) + "\n" for line in lines))


def load(folder, name, lines, limit=None):
    write(folder, name, lines)
    return TASKS[name].load(folder, limit)


def test_hellaswag(tmp_path):
    (item,) = load(
        tmp_path,
        "hellaswag",
        [
            {
                "activity_label": "Baking [header] bread",
                "context": "Mix it [title] well  now. then he",
                "ctx_b": "then he",
                "choices": ["[substeps] eats.", " runs [title] off"],
                "answer": 1,
            }
        ],
    )
    assert item.context == "Baking bread: Mix it. well now. Then he"
    assert item.choices == (" eats.", "runs. off")
    assert item.answer == 1


def test_a_hellaswag_context_may_be_whole(tmp_path):
    line = {"activity_label": "A", "context": "He sits.", "ctx_b": "", "choices": [], "answer": 0}
    assert load(tmp_path, "hellaswag", [line])[0].context == "A: He sits."


@pytest.mark.parametrize("name", ["piqa", "arc_easy", "arc_challenge"])
def test_questions(tmp_path, name):
    line = {"question": "Why?", "choices": ["so", "no"], "answer": 1}
    items = load(tmp_path, name, [line] * 3, limit=2)
    assert [item.context for item in items] == ["Question: Why?\nAnswer:"] * 2
    assert items[0].choices == ("so", "no")


def gsm8k(tmp_path, answer="1,234"):
    line = {"question": "How many?", "solution": "2 + 2\n#### 4", "answer": answer}
    shots = [line | {"question": f"Shot {i}?"} for i in range(NUM_SHOTS)]
    return load(tmp_path, "gsm8k", [line, *shots])


def test_gsm8k_is_asked_after_worked_examples(tmp_path):
    (item,) = gsm8k(tmp_path)
    shots = "".join(f"Question: Shot {i}?\nAnswer: 2 + 2\n#### 4\n\n" for i in range(NUM_SHOTS))
    assert item.prompt == f"{shots}Question: How many?\nAnswer:"
    assert "Question:" in item.until


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        (" so\n#### 1234", 1, 1),
        (" so\n#### 1,234.", 1, 1),
        (" it is $1,234", 0, 1),
        (" 5\n#### 1234 and 7", 1, 0),
        (" #### 12 and #### 1234", 0, 1),
        (" nothing", 0, 0),
    ],
)
def test_gsm8k_numbers(tmp_path, text, strict, flexible):
    (item,) = gsm8k(tmp_path)
    assert item.scores(text) == {"exact_match": strict, "flexible_match": flexible}


def test_humaneval_runs_prompt_answer_and_test(tmp_path):
    line = {
        "prompt": "def double(x):\n",
        "test": "def check(f):\n    assert f(2) == 4\n",
        "entry_point": "double",
    }
    (item,) = load(tmp_path, "humaneval", [line])
    assert item.prompt == line["prompt"]
    assert item.scores("    return 2 * x\n") == {"pass_at_1": 1.0}
    assert item.scores("    return 3 * x\n") == {"pass_at_1": 0.0}
    assert item.scores("    return (\n") == {"pass_at_1": 0.0}


@pytest.mark.parametrize(
    ("program", "fine"),
    [
        ("import math, collections, typing", True),
        ("import os; assert not os.listdir('.'); assert 'HOME' not in os.environ", True),
        ("1 / 0", False),
        ("raise SystemExit(3)", False),
        ("x = 'x' * (2 << 30)", False),
        ("open('file', 'w').write('x' * (2 << 20))", False),
        ("import torch", False),
        ("\udcff", False),
    ],
)
def test_code_runs_in_a_box(program, fine):
    assert runs_without_error(program) is fine


def test_code_that_does_not_end_is_ended(tmp_path):
    program = f"""
import os, time
if os.fork() == 0:
    time.sleep(4)
    open({str(tmp_path / "late")!r}, "w")
while True: pass
"""
    started = time.monotonic()
    assert not runs_without_error(program, seconds=1)
    assert time.monotonic() - started < 4
    time.sleep(max(0, 4.5 - (time.monotonic() - started)))
    assert not (tmp_path / "late").exists()


def test_code_runs_when_allowed_alone():
    assert find_tasks("humaneval, piqa", allow_code_execution=True) == [
        TASKS["humaneval"],
        TASKS["piqa"],
    ]
    with pytest.raises(EvaluationError, match="allow it with --allow-code-execution"):
        find_tasks("piqa,humaneval", allow_code_execution=False)
    with pytest.raises(EvaluationError, match="there is no task 'mmlu'; there are hellaswag"):
        find_tasks("mmlu", allow_code_execution=False)


def test_files_may_be_packed(tmp_path):
    line = {"question": "Why?", "choices": ["so"], "answer": 0}
    packed = tmp_path / "piqa_val.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps(line).encode()))
    assert TASKS["piqa"].load(tmp_path, None)[0].choices == ("so",)


def test_missing_files_fields_and_items_are_sentences(tmp_path):
    with pytest.raises(EvaluationError, match=r"piqa needs the file piqa_val\.jsonl or"):
        TASKS["piqa"].load(tmp_path, None)
    with pytest.raises(EvaluationError, match="a line has no field 'choices'"):
        load(tmp_path, "piqa", [{"question": "Why?"}])
    with pytest.raises(EvaluationError, match="has no items for gsm8k"):
        load(tmp_path, "gsm8k", [{"question": "Why?", "solution": "", "answer": "1"}])


@pytest.mark.parametrize("name", TASKS)
def test_the_public_files_are_read(name):
    task = TASKS[name]
    if not any((DATA / file).exists() for file in (task.file, f"{task.file}.gz")):
        pytest.skip(f"no {task.file} in {DATA}; SLICESERVE_EVAL_DATA names the folder")
    items = task.load(DATA, None)
    assert len(items) > 100
    for item in items:
        if name in ("gsm8k", "humaneval"):
            assert item.prompt
        else:
            assert item.context
            assert "[title]" not in item.context
            assert 0 <= item.answer < len(item.choices)
