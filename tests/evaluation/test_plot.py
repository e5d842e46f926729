"""The picture of rate against quality."""

import sys

import pytest

from sliceserve.evaluation.errors import EvaluationError
from sliceserve.evaluation.plot import plot_quality

RESULTS = [
    {
        "model": "tiny",
        "tokens": 100,
        "codec": codec,
        "split": split,
        "bits_per_element": bits,
        "kl": 0.3 / bits**2,
        "ppl_change": 0.1 / bits - 0.01,
    }
    for codec in ("slicer/2", "int8/1")
    for split in (8, 15)
    for bits in (1.0, 2.0, 4.0)
]


@pytest.mark.parametrize(
    ("name", "begins"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.pdf", b"%PDF")]
)
def test_a_picture_is_written(tmp_path, name, begins):
    pytest.importorskip("matplotlib", reason="matplotlib comes with the extra [plot]")
    plot_quality(RESULTS, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(begins)


def test_every_line_is_named(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib comes with the extra [plot]")
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "none"}):
        plot_quality(RESULTS, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    for codec in ("slicer/2", "int8/1"):
        for split in (8, 15):
            assert text.count(f"{codec}, split {split}") >= 1


def test_without_matplotlib_there_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(EvaluationError, match=r"pip install 'sliceserve\[plot\]'"):
        plot_quality(RESULTS, tmp_path / "a.png")


@pytest.mark.parametrize("name", ["nowhere/a.png", "a.doc"])
def test_a_picture_that_cannot_be_written_is_a_sentence(tmp_path, name):
    pytest.importorskip("matplotlib", reason="matplotlib comes with the extra [plot]")
    with pytest.raises(EvaluationError, match="cannot write a picture to"):
        plot_quality(RESULTS, tmp_path / name)
