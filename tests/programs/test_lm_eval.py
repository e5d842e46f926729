"""lm-evaluation-harness, with a task of a few lines."""

import json

import pytest

lm_eval = pytest.importorskip("lm_eval")

TASKS = {
    "capitals": """
task: capitals
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "The capital of {{country}} is"
doc_to_choice: ["Paris", "a spoon"]
doc_to_target: 0
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "greedy_capitals": """
task: greedy_capitals
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: generate_until
doc_to_text: "What is the capital of {{country}}?"
doc_to_target: "{{capital}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 12, do_sample: false}
filter_list: [{name: word, filter: [{function: regex, regex_pattern: "(Paris)"}, {function: take_first}]}]
metric_list: [{metric: exact_match}]
""",  # noqa: E501
}


@pytest.fixture
def evaluate(endpoint, tmp_path, monkeypatch):
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("OPENAI_API_KEY", endpoint.api_key)
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = tmp_path / "rows.jsonl"
    row = {"country": "France", "capital": "Paris"}
    rows.write_text("".join(json.dumps(row) + "\n" for _ in range(2)))
    for name, text in TASKS.items():
        (tmp_path / f"{name}.yaml").write_text(text.replace("FILE", str(rows)))

    def run(model: str, path: str, task: str, **options: object) -> dict:
        arguments = {"model": endpoint.model, "base_url": f"{endpoint.base_url}/{path}", **options}
        manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
        results = lm_eval.simple_evaluate(
            model=model, model_args=arguments, tasks=[task], task_manager=manager,
            bootstrap_iters=0, apply_chat_template=model == "local-chat-completions",
        )  # fmt: skip
        return results["results"][task]

    return run


def test_log_likelihoods(evaluate, endpoint):
    """With the server's own tokenizer, which the program finds by itself."""
    options = {"auth_token": endpoint.api_key, "max_length": 512, "batch_size": 2}
    results = evaluate("local-completions", "completions", "capitals", **options)
    assert (results["acc,none"], results["acc_norm,none"]) == (1.0, 1.0)


def test_generation_by_chat(evaluate):
    results = evaluate("local-chat-completions", "chat/completions", "greedy_capitals")
    assert results["exact_match,word"] == 1.0
