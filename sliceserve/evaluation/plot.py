"""Rate against quality, as a picture that reads in black and white."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from sliceserve.evaluation.errors import EvaluationError

# By codec, and by cut: told apart without colour.
_MARKERS = "osD^vPX"
_LINES = ("-", "--", ":", "-.")
_TICKS = (0.5, 0.6, 0.8, 1, 1.2, 1.6, 2, 2.5, 3, 4, 5, 6, 8, 12, 16, 24, 32)


def plot_quality(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw results of ``text_quality``: bits on the wire against KL and against the change of
    perplexity, a line for each cut and codec. The name's ending chooses the format.

    Raises EvaluationError without matplotlib, or for a file that cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EvaluationError(
            "drawing needs matplotlib, which is not installed; run: pip install 'sliceserve[plot]'"
        ) from error
    figure = Figure(figsize=(11, 5), layout="constrained")
    kl, perplexity = figure.subplots(1, 2)
    _draw(kl, results, "kl", 1)
    kl.set_yscale("log")
    kl.set_ylabel("KL to the uncut model, nats")
    _draw(perplexity, results, "ppl_change", 100)
    if min(result["ppl_change"] for result in results) > 0:
        perplexity.set_yscale("log")
    else:
        perplexity.set_yscale("symlog", linthresh=1)
        perplexity.axhline(0, color="0.6", linewidth=0.8)
    perplexity.yaxis.set_major_formatter("{x:g}")
    perplexity.set_ylabel("change of perplexity, %")
    first = results[0]
    figure.legend(*kl.get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.suptitle(f"{first['model']}, {first['tokens']} tokens")
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"cannot write a picture to {path}: {error}") from error


def _draw(axes: Any, results: Sequence[dict[str, Any]], quality: str, scale: float) -> None:
    codecs = list(dict.fromkeys(result["codec"] for result in results))
    bits = [result["bits_per_element"] for result in results]
    lowest, highest = min(bits), max(bits)
    cuts = sorted({result["split"] for result in results})

    def line(result: dict[str, Any]) -> tuple[str, int]:
        return result["codec"], result["split"]

    for (codec, cut), of_line in groupby(sorted(results, key=line), key=line):
        points = sorted((r["bits_per_element"], scale * r[quality]) for r in of_line)
        x, y = zip(*points, strict=True)
        shade = str(0.55 * codecs.index(codec) / len(codecs))
        # The first cut's markers are filled, the others' hollow.
        fill = shade if cut == cuts[0] else "white"
        axes.plot(
            x,
            y,
            marker=_MARKERS[codecs.index(codec) % len(_MARKERS)],
            linestyle=_LINES[cuts.index(cut) % len(_LINES)],
            color=shade,
            markerfacecolor=fill,
            label=f"{codec}, split {cut}",
        )
    axes.set_xlabel("bits per element on the wire")
    axes.set_xscale("log", base=2)
    axes.set_xticks([tick for tick in _TICKS if lowest / 1.2 <= tick <= highest * 1.2])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.05, y=0.05)
    axes.grid(True, which="major", color="0.9")
