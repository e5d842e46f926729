"""What the parts of a profile are fitted to, on samples that are known."""

import pytest
import torch

from sliceserve.calibration.basis import coding_basis, sensitivity
from sliceserve.calibration.predictor import Samples, fit_predictor
from sliceserve.calibration.tables import fit_tables
from sliceserve.codec.quantization import LAMBDA
from sliceserve.kernels import calibrated as kernel

HIDDEN_SIZE = 16
NUM_TOKENS = 6000


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def matrix(generator, radius):
    weight = torch.randn(HIDDEN_SIZE, HIDDEN_SIZE, generator=generator)
    return weight * (radius / torch.linalg.eigvals(weight).abs().max())


def planted(generator, noise=0.1, radius=0.6):
    """A process whose terms are those of a profile: samples, and the matrices it is made of."""
    token_weight = matrix(generator, 1.0)
    state_weight = matrix(generator, radius)
    table = torch.randn(400, HIDDEN_SIZE, generator=generator)
    token_ids = torch.randint(400, (NUM_TOKENS,), generator=generator)
    mean = torch.randn(HIDDEN_SIZE, generator=generator)
    states = noise * torch.randn(NUM_TOKENS, HIDDEN_SIZE, generator=generator)
    states += table[token_ids] @ token_weight
    for t in range(1, NUM_TOKENS):
        states[t] += states[t - 1] @ state_weight
    states += mean
    return token_weight, state_weight, sampled(states, table[token_ids], token_ids)


def sampled(states, embedded, token_ids):
    return Samples(
        states=states[1:],
        previous=states[:-1],
        embedded=embedded[1:],
        token_ids=token_ids[1:],
        mean=states.mean(0),
    )


def relative(found, expected):
    return ((found.float() - expected).norm() / expected.norm()).item()


def predicted(fit, samples):
    """By the profile's formula."""
    out = fit.offset + samples.embedded @ fit.token_weight.float()
    if fit.state_weight is not None:
        out = out + (samples.previous - samples.mean) @ fit.state_weight.float()
    places = {token_id: i for i, token_id in enumerate(fit.token_ids.tolist())}
    for i, token_id in enumerate(samples.token_ids.tolist()):
        if token_id in places:
            out[i] += fit.token_rows[places[token_id]].float()
    return out


def test_a_planted_relation_is_found(generator):
    token_weight, state_weight, samples = planted(generator)
    fit = fit_predictor(samples, "state")
    # Ridge terms shrink what they find: 2 % of the variance, and for states 7 %.
    assert relative(fit.token_weight, token_weight) < 0.15
    assert relative(fit.state_weight, state_weight) < 0.4


def test_each_term_leaves_less(generator):
    _, _, samples = planted(generator)
    left = {
        predictor: fit_predictor(samples, predictor).residual.square().mean().item()
        for predictor in ("none", "token", "state")
    }
    assert left["token"] < 0.7 * left["none"]
    assert left["state"] < 0.2 * left["token"]


@pytest.mark.parametrize("predictor", ["token", "state"])
def test_the_terms_are_those_of_the_formula(generator, predictor):
    """What is left of a token counts its own row without itself: a little more than remains."""
    _, _, samples = planted(generator)
    fit = fit_predictor(samples, predictor)
    assert [fit.token_ids.dtype, fit.token_rows.dtype, fit.token_weight.dtype] == [
        torch.int32,
        torch.float16,
        torch.float16,
    ]
    left = samples.states - predicted(fit, samples)
    assert 0.8 < (left.square().mean() / fit.residual.square().mean()).item() < 1


def test_without_a_predictor_the_mean_is_all(generator):
    _, _, samples = planted(generator)
    fit = fit_predictor(samples, "none")
    assert torch.equal(fit.offset, samples.mean)
    assert (fit.token_weight, fit.token_ids, fit.token_rows, fit.state_weight) == (None,) * 4
    assert torch.equal(fit.residual, samples.states - samples.mean)


def test_without_transform_elements_are_foretold_from_their_own(generator):
    embedded = torch.randn(NUM_TOKENS, HIDDEN_SIZE, generator=generator)
    slope = torch.linspace(-1, 1, HIDDEN_SIZE)
    decay = torch.linspace(0.2, 1.1, HIDDEN_SIZE)
    previous = torch.randn(NUM_TOKENS, HIDDEN_SIZE, generator=generator)
    states = embedded * slope + previous * decay
    ids = torch.arange(NUM_TOKENS)
    zero = torch.zeros(HIDDEN_SIZE)
    fit = fit_predictor(Samples(states, previous, embedded, ids, zero), "state", transform=False)
    assert torch.allclose(fit.token_weight.float(), slope, atol=0.1)
    assert torch.allclose(fit.state_weight.float(), (decay / 1.07).clamp(max=0.95), atol=0.05)
    assert fit.residual.square().mean() < 0.05 * states.square().mean()


def test_frequent_tokens_have_rows_that_are_shrunk():
    """Embeddings that say nothing, and a shift for each token: it is in the rows."""
    token_ids = torch.tensor([5] * 2 + [7] * 3 + [9] * 97 + [200] * 98)
    shift = torch.zeros(201, HIDDEN_SIZE)
    shift[9, 0], shift[200, 0], shift[7, 1] = 1.0, -1.0, 2.0
    states = shift[token_ids]
    zeros = torch.zeros_like(states)
    zeros[::2, 0] = 1e-3
    fit = fit_predictor(Samples(states, zeros, zeros, token_ids, states.mean(0)), "token")
    assert fit.token_ids.tolist() == [7, 9, 200]
    row = dict(zip(fit.token_ids.tolist(), fit.token_rows.float(), strict=True))
    assert row[9][0] == pytest.approx(97 / 100, abs=0.03)
    assert row[200][0] == pytest.approx(-98 / 101, abs=0.03)
    # Three times, and three more with nothing.
    assert row[7][1] == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("radius", [0.5, 0.99, 1.0])
def test_errors_of_the_past_die_out(generator, radius):
    _, _, samples = planted(generator, noise=0.01, radius=radius)
    fit = fit_predictor(samples, "state")
    assert torch.linalg.eigvals(fit.state_weight.float()).abs().max() <= 0.951


def test_a_state_that_doubles_is_held_to_the_bound(generator):
    """As no model's does over a long text, but a short one may look like it."""
    previous = torch.randn(NUM_TOKENS, HIDDEN_SIZE, generator=generator)
    zeros = torch.zeros_like(previous)
    zeros[::2] = 1e-3
    ids = torch.zeros(NUM_TOKENS, dtype=torch.int64)
    fit = fit_predictor(Samples(2 * previous, previous, zeros, ids, previous.mean(0)), "state")
    radius = torch.linalg.eigvals(fit.state_weight.float()).abs().max().item()
    assert radius == pytest.approx(0.95, abs=0.02)


def test_the_basis_orders_and_whitens_by_the_gradients(generator):
    """Twice as large gradients ask for half the step, whatever the variance."""
    scale = torch.ones(HIDDEN_SIZE)
    scale[3] = 10
    weight = torch.ones(HIDDEN_SIZE)
    weight[5] = 4
    residual = torch.randn(NUM_TOKENS, HIDDEN_SIZE, generator=generator) * scale
    gradients = torch.randn(NUM_TOKENS, HIDDEN_SIZE, generator=generator) * weight
    basis = coding_basis(residual, gradients)
    assert (basis.shape, basis.dtype) == ((HIDDEN_SIZE, HIDDEN_SIZE), torch.float16)
    components = residual @ torch.linalg.inv(basis.float())
    deviations = components.std(0)
    assert (deviations.diff() < 0.03).all()
    assert deviations[0] > 2 * deviations[1] > 4 * deviations[2]
    assert basis[0].abs().argmax() == 3 and basis[1].abs().argmax() == 5
    # A step along the second moves the state by less than along those of no weight.
    assert basis[1].norm() < 0.5 * basis[2].norm()
    # Components of a residual do not know of each other.
    correlation = torch.corrcoef(components.T) - torch.eye(HIDDEN_SIZE)
    assert correlation.abs().max() < 0.1


def test_without_transform_the_basis_is_weights(generator):
    weight = torch.ones(HIDDEN_SIZE)
    weight[5] = 4
    gradients = torch.randn(NUM_TOKENS, HIDDEN_SIZE, generator=generator) * weight
    basis = coding_basis(torch.zeros(1, HIDDEN_SIZE), gradients, transform=False)
    assert (basis.shape, basis.dtype) == ((HIDDEN_SIZE,), torch.float16)
    others = basis[torch.arange(HIDDEN_SIZE) != 5]
    assert basis[5] < 0.4 * others.min() and others.max() < 1.1 * others.min()


def test_sensitivity_is_learnt_from_the_size_of_gradients(generator):
    states = torch.randn(NUM_TOKENS, HIDDEN_SIZE, generator=generator) + 5
    mean = states.mean(0)
    size = ((states[:, 2] - mean[2]) / 2).exp()[:, None]
    gradients = size[:, None] * torch.randn(NUM_TOKENS, 3, HIDDEN_SIZE, generator=generator)
    found = sensitivity(states, mean, gradients)
    assert found.shape == (HIDDEN_SIZE + 1,)
    # Energy e^x, and its inverse square root to the 0.5 as points of a quarter octave: -1.44 x.
    assert found[2].item() == pytest.approx(-1.44, rel=0.1)
    assert found[:2].abs().max() < 0.05 and found[3:-1].abs().max() < 0.05


def test_tables_fit_what_they_are_made_for(generator):
    """Coding the samples costs less by their own tables than by those of other samples."""
    deviations = 4 * 0.8 ** torch.arange(HIDDEN_SIZE)
    gaussian = torch.randn(1500, HIDDEN_SIZE, generator=generator) * deviations
    sparse = gaussian * (torch.rand(gaussian.shape, generator=generator) < 0.2) * 5**0.5
    shifts = torch.zeros(1500)
    base_step = (gaussian.square().mean().sqrt() / 16).item()
    tables = {name: fit_tables(x, base_step, shifts) for name, x in samples_of(gaussian, sparse)}
    for name, components in samples_of(gaussian, sparse):
        sizes = {other: size(components, base_step, tables[other]) for other in tables}
        assert sizes[name] == min(sizes.values())
        assert max(sizes.values()) > 1.03 * sizes[name]


def samples_of(gaussian, sparse):
    return (("gaussian", gaussian), ("sparse", sparse))


def size(components, base_step, tables):
    points = torch.full((len(components),), 8, dtype=torch.uint8)
    y64 = (components * 64 / (base_step * 4)).round().int()
    payloads = torch.zeros(len(components), dtype=torch.int32)
    packets, _ = kernel.encode(y64, points, payloads, tables, LAMBDA, 0)
    return sum(map(len, packets))


def test_centroids_lie_below_the_middle_where_small_values_are_frequent(generator):
    components = torch.randn(3000, HIDDEN_SIZE, generator=generator)
    tables = fit_tables(components, 1 / 16, torch.zeros(3000))
    used = tables.base_scales.astype(int).max() - 14
    shift = tables.centroids[used, 0, 1] - kernel.NOMINAL[0, 1]
    assert -64 < shift < 0
    assert not tables.centroids[..., 0].any()
