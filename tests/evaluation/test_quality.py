"""KL, perplexity and agreement, against transformers and against what they must be."""

import gzip
import json

import pytest
import torch
from conftest import NUM_TOKENS

from sliceserve.configs import CodecConfig, SlicerConfig
from sliceserve.evaluation import states
from sliceserve.evaluation.errors import EvaluationError
from sliceserve.evaluation.points import Sweep
from sliceserve.evaluation.quality import text_quality
from sliceserve.evaluation.text import read_windows

WINDOW = 128


@pytest.fixture
def windows(whole, text):
    return read_windows(text, whole.tokenizer, NUM_TOKENS, WINDOW)


def test_windows_are_the_joined_texts(whole, text, windows):
    assert [len(window.token_ids) for window in windows] == [128, 128, 44]
    texts = [json.loads(line)["text"] for line in text.read_text().splitlines()]
    ids = [i for window in windows for i in window.token_ids]
    assert [f"w{i}" for i in ids] == " ".join(texts).split()
    few = read_windows(text, whole.tokenizer, 130, WINDOW)
    assert [i for window in few for i in window.token_ids] == ids[:130]


def test_packed_text_is_unpacked(whole, text, windows):
    packed = text.with_suffix(".jsonl.gz")
    packed.write_bytes(gzip.compress(text.read_bytes()))
    assert read_windows(packed, whole.tokenizer, NUM_TOKENS, WINDOW) == windows


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"text": "w3 w4"}\n{"txt": "w5"}', "line 2 has no text"),
        ('{"text": "w3 w4"}\n{"text', "line 2 is not valid JSON"),
        ("[1]", "line 1 must hold a JSON object, got list"),
        ('{"text": "w3"}', "has 1 tokens"),
        ("", "has 0 tokens"),
        ("\x80", "is not text in UTF-8"),
    ],
)
def test_a_wrong_file_is_a_sentence(whole, tmp_path, content, words):
    path = tmp_path / "wrong.jsonl"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(EvaluationError, match=words):
        read_windows(path, whole.tokenizer, 100, WINDOW)
    with pytest.raises(EvaluationError, match=r"cannot read .*nowhere"):
        read_windows(tmp_path / "nowhere", whole.tokenizer, 100, WINDOW)


@torch.inference_mode()
def through_transformers(model, windows, cut, change):
    """Sums over the windows with ``change`` done to what enters layer ``cut``: KL, negative
    log-likelihoods with and without, agreements."""
    sums = torch.zeros(4, dtype=torch.float64)
    for window in windows:
        ids = torch.tensor([window.token_ids])
        uncut = model(ids).logits[0].double().log_softmax(-1)
        hook = model.model.layers[cut].register_forward_pre_hook(
            lambda layer, args: (change(args[0]), *args[1:])
        )
        coded = model(ids).logits[0].double().log_softmax(-1)
        hook.remove()
        following = ids[0, 1:, None]
        sums[0] += (uncut.exp() * (uncut - coded)).sum()
        sums[1] -= coded[:-1].gather(1, following).sum()
        sums[2] -= uncut[:-1].gather(1, following).sum()
        sums[3] += (uncut.argmax(-1) == coded.argmax(-1)).sum()
    return sums.tolist()


@pytest.mark.parametrize("cut", [1, 4])
def test_figures_are_those_of_transformers(tiny, whole, windows, cut):
    (result,) = text_quality(whole, windows, Sweep([cut], [CodecConfig(name="bfloat16")]))
    kl, nll, nll_uncut, num_same = through_transformers(
        tiny[1], windows, cut, lambda hidden: hidden.bfloat16().float()
    )
    num_predicted = NUM_TOKENS - len(windows)
    assert result["kl"] == pytest.approx(kl / NUM_TOKENS, rel=0.02)
    assert result["kl"] > 1e-6
    perplexities = [torch.tensor(sum_ / num_predicted).exp() for sum_ in (nll, nll_uncut)]
    assert result["ppl"] == pytest.approx(perplexities[0].item(), rel=1e-4)
    assert result["ppl_uncompressed"] == pytest.approx(perplexities[1].item(), rel=1e-4)
    assert result["ppl_change"] == pytest.approx(
        result["ppl"] / result["ppl_uncompressed"] - 1, abs=1e-9
    )
    assert result["top1"] == pytest.approx(num_same / NUM_TOKENS, abs=0.01)


def test_a_lossless_codec_costs_bits_alone(whole, windows):
    (result,) = text_quality(whole, windows, Sweep([3], [CodecConfig(name="float32")]))
    assert abs(result["kl"]) < 1e-6
    assert result["ppl"] == pytest.approx(result["ppl_uncompressed"], rel=1e-6)
    assert result["top1"] == 1.0
    assert result["packet_bits_per_element"] == 32
    assert 32 < result["bits_per_element"] < 33
    assert result["reduction_vs_fp16"] == 16 / result["bits_per_element"]
    assert (result["codec"], result["settings"], result["split"]) == ("float32/1", {}, 3)
    assert result["tokens"] == NUM_TOKENS


def test_more_bits_are_better_at_every_cut(whole, windows):
    sweep = Sweep([2, 4], [CodecConfig(name="slicer"), CodecConfig(name="int8")], budgets=[5, 3])
    with pytest.raises(EvaluationError, match="int8 has one rate"):
        text_quality(whole, windows, sweep)
    results = text_quality(
        whole, windows, Sweep([2, 4], [CodecConfig(name="slicer")], budgets=[12, 5, 3])
    )
    assert [result["split"] for result in results] == [2, 2, 2, 4, 4, 4]
    for finest, middle, coarsest in (results[:3], results[3:]):
        assert finest["kl"] < middle["kl"] < coarsest["kl"]
        assert 4.5 < middle["bits_per_element"] <= 5
        assert 2.5 < coarsest["bits_per_element"] <= 3
        assert finest["settings"]["sparsity"] < coarsest["settings"]["sparsity"]


def test_one_setting_is_measured_once(whole, windows):
    sweep = Sweep([3], [CodecConfig(name="int8")], budgets=[16, 12, 3])
    assert len(text_quality(whole, windows, sweep)) == 1


def test_smaller_frames_cost_more(whole, windows):
    slicer = CodecConfig(name="slicer", slicer=SlicerConfig(sparsity=0.8))
    large, small = (
        text_quality(whole, windows, Sweep([3], [slicer], tokens_per_frame=n))[0] for n in (512, 1)
    )
    assert small["packet_bits_per_element"] == large["packet_bits_per_element"]
    overheads = [r["bits_per_element"] - r["packet_bits_per_element"] for r in (large, small)]
    # Headers of frame and WebSocket for each token, not for each window: 6 bytes at the least.
    assert overheads[1] > 8 * 6 / 72
    assert overheads[0] < overheads[1] / 3


def test_the_uncut_model_runs_once(whole, windows, cache, monkeypatch):
    sweep = Sweep([2], [CodecConfig(name="slicer")])
    first = text_quality(whole, windows, sweep)
    (kept,) = (cache / "eval").iterdir()
    ranges = []
    run = type(whole).run

    def counted(self, hidden, start, stop, *args):
        ranges.append((start, stop))
        run(self, hidden, start, stop, *args)

    monkeypatch.setattr(type(whole), "run", counted)
    assert text_quality(whole, windows, sweep) == first
    assert ranges == [(0, 2), (2, 6)]
    kept.write_bytes(b"not a tensor")
    assert text_quality(whole, windows, sweep) == first
    assert ranges[2:] == [(0, 2), (2, 6), (2, 6)]
    assert states._kept_file(whole, windows[:1]) != kept


@pytest.mark.parametrize("cut", [0, 6, -1])
def test_a_cut_outside_the_model_is_a_sentence(whole, cut):
    with pytest.raises(EvaluationError, match="it has 6 layers, so a split is 1 to 5"):
        whole.check_cut(cut)
    assert whole.check_cut(None) == 3
