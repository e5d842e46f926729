"""The finest setting within a budget."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sliceserve.codec.registry import build_codec
from sliceserve.configs import CodecConfig, SlicerConfig
from sliceserve.evaluation.errors import EvaluationError
from sliceserve.evaluation.rates import finest, settings_in_force

SIZE = 256
ROWS = torch.randn(8, SIZE, generator=torch.Generator().manual_seed(0))


def bits_by_slicer(config):
    packets = build_codec(config, SIZE).encode(ROWS)
    return 8 * sum(map(len, packets)) / ROWS.numel()


@given(st.floats(0.01, 9))
def test_the_budget_is_kept_and_used(budget):
    """With as many bits as elements that survive, the setting can be told by hand."""
    config = CodecConfig(name="slicer")

    def bits(config):
        return 8 * (1 - config.slicer.sparsity)

    if budget < 8 / SIZE:
        with pytest.raises(EvaluationError):
            finest(config, budget, SIZE, bits)
        return
    chosen = finest(config, budget, SIZE, bits)
    assert bits(chosen) <= budget
    assert chosen.slicer.sparsity == 0 or bits(chosen) + 8 / SIZE > budget


@pytest.mark.parametrize("power", [0.5, 1, 3])
@given(budget=st.floats(0.001, 3.9))
def test_few_settings_are_tried(power, budget):
    """Each costs a pass over the data."""
    num_tried = 0

    def bits(config):
        nonlocal num_tried
        num_tried += 1
        return 8 * (config.calibrated.bits_per_element / 8) ** power

    try:
        chosen = finest(CodecConfig(), budget, SIZE, bits).calibrated.bits_per_element
    except EvaluationError:
        assert num_tried == 1
        return
    assert num_tried <= (6 if power == 1 else 16)
    assert 8 * (chosen / 8) ** power <= budget
    assert chosen == 8 or 8 * ((chosen + 1 / 64) / 8) ** power > budget


@pytest.mark.parametrize("budget", [2.5, 3.5, 5.0])
def test_slicer_drops_as_little_as_it_may(budget):
    config = CodecConfig(name="slicer", slicer=SlicerConfig(distortion=0.02))
    chosen = finest(config, budget, SIZE, bits_by_slicer)
    kept = round((1 - chosen.slicer.sparsity) * SIZE)
    assert chosen.slicer.distortion == 0.02
    assert bits_by_slicer(chosen) <= budget
    if kept < SIZE:
        slicer = SlicerConfig(sparsity=1 - (kept + 1) / SIZE, distortion=0.02)
        assert bits_by_slicer(CodecConfig(name="slicer", slicer=slicer)) > budget


def test_a_codec_with_one_rate_either_fits_or_does_not():
    config = CodecConfig(name="int8")
    assert finest(config, 9.0, SIZE, bits_by_slicer) == config
    with pytest.raises(EvaluationError, match=r"int8 has one rate, 8\.25 bits .* the 8 asked for"):
        finest(config, 8.0, SIZE, bits_by_slicer)


def test_too_small_a_budget_is_a_sentence():
    with pytest.raises(EvaluationError, match=r"slicer takes at least .* the 0\.1 asked for"):
        finest(CodecConfig(name="slicer"), 0.1, SIZE, bits_by_slicer)


def test_settings_are_those_of_the_codec():
    assert (
        settings_in_force(CodecConfig(name="slicer", slicer=SlicerConfig(sparsity=0.25)))[
            "sparsity"
        ]
        == 0.25
    )
    assert settings_in_force(CodecConfig(name="int8")) == {}
