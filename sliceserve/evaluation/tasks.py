"""Tasks: where their items lie, and what lm-evaluation-harness makes of them as prompts."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from sliceserve.evaluation.errors import EvaluationError
from sliceserve.evaluation.text import read_lines

# GSM8K: worked examples before each question.
NUM_SHOTS = 5

_NUMBER = re.compile(r"#### (\-?[0-9\.\,]+)")
_LAST_NUMBER = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")


@dataclass(frozen=True, slots=True)
class ChoiceItem:
    """A question with several answers, of which number ``answer`` is right. An answer follows
    ``context`` after a space."""

    context: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True, slots=True)
class GenerationItem:
    """A prompt whose greedy answer ends before the first of ``until``. ``scores`` gives each
    metric of that answer, 0 or 1."""

    prompt: str
    until: tuple[str, ...]
    max_tokens: int
    scores: Callable[[str], dict[str, float]]


Item = ChoiceItem | GenerationItem


@dataclass(frozen=True, slots=True)
class Task:
    """``file`` may lie in the folder as it is, or as .gz. ``runs_code``: scoring executes what the
    model wrote."""

    name: str
    file: str
    items: Callable[[list[dict[str, Any]]], list[Item]]
    runs_code: bool = False

    def load(self, folder: Path, limit: int | None) -> list[Item]:
        """The first ``limit`` items, or all. Raises EvaluationError for a file or a field that is
        missing."""
        path = folder / self.file
        if not path.exists():
            path = path.with_name(f"{self.file}.gz")
        if not path.exists():
            raise EvaluationError(
                f"{self.name} needs the file {self.file} or {self.file}.gz in {folder}"
            )
        # The last lines of a file may be worked examples.
        lines = list(read_lines(path))
        try:
            items = list(islice(self.items(lines), limit))
        except KeyError as error:
            raise EvaluationError(f"{path}: a line has no field {error}") from error
        if not items:
            raise EvaluationError(f"{path} has no items for {self.name}")
        return items


def find_tasks(names: str, allow_code_execution: bool) -> list[Task]:
    """Tasks by their names, with commas between. Raises EvaluationError for one that is not known,
    or that runs code unasked."""
    tasks = []
    for name in names.split(","):
        task = TASKS.get(name.strip())
        if task is None:
            raise EvaluationError(f"there is no task {name!r}; there are {', '.join(TASKS)}")
        if task.runs_code and not allow_code_execution:
            raise EvaluationError(
                f"{task.name} runs the code that the model writes, in a child process with limits; "
                "allow it with --allow-code-execution"
            )
        tasks.append(task)
    return tasks


def _hellaswag(line: dict[str, Any]) -> ChoiceItem:
    ending = line["ctx_b"]
    beginning = line["context"].removesuffix(ending).removesuffix(" ")
    context = f"{line['activity_label']}: {beginning} {ending.capitalize()}"
    return ChoiceItem(_cleaned(context), tuple(map(_cleaned, line["choices"])), line["answer"])


def _cleaned(text: str) -> str:
    """Without the marks of the WikiHow pages that HellaSwag was made from."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _question(line: dict[str, Any]) -> ChoiceItem:
    """PIQA's and ARC's."""
    return ChoiceItem(
        f"Question: {line['question']}\nAnswer:", tuple(line["choices"]), line["answer"]
    )


def _each(
    make: Callable[[dict[str, Any]], Item],
) -> Callable[[list[dict[str, Any]]], list[Item]]:
    return lambda lines: list(map(make, lines))


def _gsm8k(lines: list[dict[str, Any]]) -> list[Item]:
    """The file's last questions are the worked examples, and are not asked."""
    asked, shots = lines[:-NUM_SHOTS], lines[-NUM_SHOTS:]
    examples = "".join(
        f"Question: {shot['question']}\nAnswer: {shot['solution']}\n\n" for shot in shots
    )
    return [
        GenerationItem(
            prompt=f"{examples}Question: {line['question']}\nAnswer:",
            until=("Question:", "</s>", "<|im_end|>"),
            max_tokens=256,
            scores=_number_scores(line["answer"]),
        )
        for line in asked
    ]


def _number_scores(answer: str) -> Callable[[str], dict[str, float]]:
    """exact_match wants the number behind "####", flexible_match takes the last one there is."""
    wanted = _plain_number(answer)

    def scores(text: str) -> dict[str, float]:
        strict = _NUMBER.search(text)
        numbers = [match.group() for match in _LAST_NUMBER.finditer(text)]
        return {
            "exact_match": float(strict is not None and _plain_number(strict[1]) == wanted),
            "flexible_match": float(bool(numbers) and _plain_number(numbers[-1]) == wanted),
        }

    return scores


def _plain_number(text: str) -> str:
    return text.strip().replace(",", "").replace("$", "").removesuffix(".").lower()


def _humaneval(line: dict[str, Any]) -> GenerationItem:
    def scores(text: str) -> dict[str, float]:
        from sliceserve.evaluation.sandbox import runs_without_error

        program = f"{line['prompt']}{text}\n{line['test']}\ncheck({line['entry_point']})\n"
        return {"pass_at_1": float(runs_without_error(program))}

    return GenerationItem(
        prompt=line["prompt"],
        until=("\nclass", "\ndef", "\n#", "\nif", "\nprint"),
        max_tokens=1024,
        scores=scores,
    )


TASKS = {
    task.name: task
    for task in (
        Task("hellaswag", "hellaswag_val.jsonl", _each(_hellaswag)),
        Task("piqa", "piqa_val.jsonl", _each(_question)),
        Task("arc_easy", "arc_easy_test.jsonl", _each(_question)),
        Task("arc_challenge", "arc_challenge_test.jsonl", _each(_question)),
        Task("gsm8k", "gsm8k_test.jsonl", _gsm8k),
        Task("humaneval", "humaneval.jsonl", _each(_humaneval), runs_code=True),
    )
}
