"""`sliceserve eval`: what a codec costs the answer, at a cut and an operating point."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sliceserve.cli import options
from sliceserve.cli.bench.options import Json, numbers
from sliceserve.cli.console import Working, progress

if TYPE_CHECKING:
    from rich.table import Table

    from sliceserve.configs import ModelConfig
    from sliceserve.evaluation.model import WholeModel


def evaluate(
    data: Annotated[
        Path,
        typer.Option(
            help='A file of text: one JSON object a line, with the field "text". With --tasks the '
            "folder of their files."
        ),
    ],
    tokens: Annotated[
        int, typer.Option(min=2, help="How many tokens of the text pass through each codec.")
    ] = 8192,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Accuracies instead: a list of hellaswag, piqa, arc_easy, arc_challenge, gsm8k "
            "and humaneval."
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Items of each task, the first ones.", show_default="all"),
    ] = None,
    allow_code_execution: Annotated[
        bool,
        typer.Option(
            "--allow-code-execution",
            help="For humaneval: run what the model writes, in a child process with limits.",
        ),
    ] = False,
    model: options.Model = None,
    split: Annotated[
        list[str] | None,
        typer.Option(
            help='Layers before the cut, as "8,15"; repeatable.', show_default="the middle one"
        ),
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(
            help='Codecs to compare, as "slicer,int8,float16".',
            show_default=options.CLIENT.codec.name,
        ),
    ] = None,
    bits_per_element: Annotated[
        str | None,
        typer.Option(
            help='Bits on the wire for each element of a hidden state, as "1.6,1.0": each codec '
            "runs at the finest of its settings that costs no more on this data.",
            show_default="the settings given",
        ),
    ] = None,
    sparsity: options.Sparsity = None,
    distortion: options.Distortion = None,
    hide_tokens: options.HideTokens = None,
    tokens_per_frame: Annotated[
        int, typer.Option(min=1, max=512, help="Packets that share a frame, at most.")
    ] = 512,
    dtype: Annotated[
        str, typer.Option(help="The model's: auto, float32, float16 or bfloat16.")
    ] = "float32",
    device: options.Device = None,
    config_file: options.ConfigFile = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw bits against quality, to a .png, .svg or .pdf; not with --tasks."),
    ] = None,
    json: Json = False,
) -> None:
    """What a codec costs the answer: every token passes through it at the cut.

    The model, cut and coded, is compared with the same model uncut: its next-token distributions
    over a text, or what it makes of tasks.
    """
    from sliceserve.cli.bench.report import finish
    from sliceserve.evaluation.accuracy import task_accuracy
    from sliceserve.evaluation.points import Sweep
    from sliceserve.evaluation.quality import text_quality
    from sliceserve.evaluation.tasks import find_tasks
    from sliceserve.evaluation.text import read_windows

    if tasks and plot:
        raise typer.BadParameter("--plot draws the quality of a text; leave --tasks out")
    found = find_tasks(tasks, allow_code_execution) if tasks else []
    clients = [
        options.client_config(
            config_file,
            model=model,
            dtype=dtype,
            device=device,
            codec=name and name.strip(),
            sparsity=sparsity,
            distortion=distortion,
            hide_tokens=hide_tokens,
        )
        for name in (codec.split(",") if codec else [None])
    ]
    codecs = [client.codec for client in clients]
    whole = _load(clients[0].model)
    budgets = _budgets(bits_per_element) if bits_per_element else []
    cuts = [cut for part in split for cut in numbers(part)] if split else [clients[0].split]
    sweep = Sweep([whole.check_cut(cut) for cut in cuts], codecs, budgets, tokens_per_frame)
    with Working("Preparing codecs; a profile that is missing takes minutes …"):
        for cut, settings in product(sweep.cuts, sweep.codecs):
            whole.codec(settings, cut)
    if found:
        of_tasks = [
            result
            for task in found
            for result in task_accuracy(whole, task, data, limit, sweep, progress)
        ]
        finish(of_tasks, json, accuracy_table(of_tasks))
    else:
        windows = read_windows(data, whole.tokenizer, tokens, whole.spec.max_position_embeddings)
        results = text_quality(whole, windows, sweep, progress)
        finish(results, json, quality_table(results))
        if plot:
            from sliceserve.evaluation.plot import plot_quality

            plot_quality(results, plot)


def quality_table(results: Sequence[dict[str, Any]]) -> "Table":
    from sliceserve.cli.bench.report import make_table

    columns = ["split", "codec", "bits", "× fp16", "KL", "ppl", "ppl %", "top-1 %"]
    rows = [
        [
            str(result["split"]),
            result["codec"],
            result["bits_per_element"],
            result["reduction_vs_fp16"],
            result["kl"],
            result["ppl"],
            100 * result["ppl_change"],
            100 * result["top1"],
        ]
        for result in results
    ]
    first = results[0]
    title = (
        f"{first['model']} in {first['dtype']}, {first['tokens']} tokens, uncut perplexity "
        f"{first['ppl_uncompressed']:.3f}; bits per element on the wire, KL in nats"
    )
    return make_table(title, columns, rows)


def accuracy_table(results: Sequence[dict[str, Any]]) -> "Table":
    """A row for each metric."""
    from sliceserve.cli.bench.report import make_table

    columns = ["task", "split", "codec", "bits", "uncut %", "coded %", "change", "items"]
    rows = [
        [
            f"{result['task']} {name}",
            result["split"],
            result["codec"],
            result["bits_per_element"],
            100 * values["uncompressed"],
            100 * values["coded"],
            f"{100 * values['difference']:+.1f} ± {100 * values['ci95']:.1f}",
            result["num_items"],
        ]
        for result in results
        for name, values in result["metrics"].items()
    ]
    first = results[0]
    title = (
        f"{first['model']} in {first['dtype']}; bits per element on the wire, paired change of "
        "items with its confidence interval of 95 %"
    )
    return make_table(title, columns, rows)


def _load(model: "ModelConfig") -> "WholeModel":
    with Working(f"Loading {model.model} …"):
        from sliceserve.evaluation.model import WholeModel

        return WholeModel(model)


def _budgets(text: str) -> list[float]:
    """ "1.6,1" → [1.6, 1.0]. Raises a usage error for anything else."""
    try:
        budgets = [float(part) for part in text.split(",")]
    except ValueError:
        budgets = [0.0]
    if min(budgets) <= 0:
        raise typer.BadParameter(f"expected bits with commas between, got {text!r}")
    return budgets
