"""Fits the predictor: what a token's id and its predecessor's state foretell of its own."""

from dataclasses import dataclass

import torch

from sliceserve.codec.profile import Predictor

# Ridge terms, as shares of the variance of the features. The states that a decoder has differ from
# those that are measured, by the codec's error: about a twentieth.
_RIDGE = 0.02
_CODING_ERROR = 0.05
# A token has a row of its own if it occurs this often; the row is shrunk as if it had occurred
# as many times more with no residual at all.
_MIN_COUNT = 3
_SHRINKAGE = 3
_MAX_ROWS = 4096
# Errors of the past must die out: the largest spectral radius that the state's matrix may have.
_MAX_RADIUS = 0.95


@dataclass(frozen=True)
class Samples:
    """Usual tokens of the calibration text, none of them the first of its window.

    states, embedded: (n, d) float32. previous: (n, d), the state before, ``mean`` where that token
    was not usual. token_ids: (n,) int64. mean: (d,), of the states.
    """

    states: torch.Tensor
    previous: torch.Tensor
    embedded: torch.Tensor
    token_ids: torch.Tensor
    mean: torch.Tensor


@dataclass(frozen=True)
class Fit:
    """The profile's terms, and what they leave of the samples: ``residual`` (n, d) float32, each
    row as if its own token had not been seen."""

    offset: torch.Tensor
    token_weight: torch.Tensor | None
    token_ids: torch.Tensor | None
    token_rows: torch.Tensor | None
    state_weight: torch.Tensor | None
    residual: torch.Tensor


def fit_predictor(samples: Samples, predictor: Predictor, transform: bool = True) -> Fit:
    """Weights are (d, d); without ``transform`` (d,), each element foretold from its own alone."""
    regression = _ridge_regression if transform else _ridge_regression_by_element
    targets = samples.states - samples.mean
    if predictor == "none":
        return Fit(samples.mean.clone(), None, None, None, None, targets)
    center = samples.embedded.mean(0)
    features, ridge = [samples.embedded - center], [_RIDGE]
    if predictor == "state":
        features.append(samples.previous - samples.mean)
        ridge.append(_RIDGE + _CODING_ERROR)
    weights = regression(features, ridge, targets)
    state_weight = None
    if predictor == "state":
        state_weight = _contracted(weights[1]).half()
        targets = targets - product(features[1], state_weight.float())
        weights = regression(features[:1], ridge[:1], targets)
    token_weight = weights[0].half()
    residual = targets - product(features[0], token_weight.float())
    offset = samples.mean - product(center, token_weight.float())
    token_ids, token_rows, residual = _rows_of_tokens(samples.token_ids, residual)
    return Fit(offset, token_weight, token_ids, token_rows, state_weight, residual)


def product(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(..., d) · (d, d), or (d,) for a diagonal."""
    return rows @ weight if weight.dim() == 2 else rows * weight


def _ridge_regression(
    features: list[torch.Tensor], ridge: list[float], targets: torch.Tensor
) -> list[torch.Tensor]:
    """Weights (d, d) of each of the features (n, d); ``ridge`` relative to their mean variance."""
    x = torch.cat(features, dim=1)
    gram = (x.T @ x).double()
    widths = [f.shape[1] for f in features]
    penalties = zip(_penalties(features, ridge), widths, strict=True)
    diagonal = torch.cat([penalty.expand(width) for penalty, width in penalties])
    weights = torch.linalg.solve(gram + torch.diag(diagonal), (x.T @ targets).double())
    return list(weights.float().split(widths))


def _ridge_regression_by_element(
    features: list[torch.Tensor], ridge: list[float], targets: torch.Tensor
) -> list[torch.Tensor]:
    """The same with diagonal weights, (d,) of each of the features."""
    x = torch.stack(features, dim=2)  # (n, d, k)
    gram = torch.einsum("ndi,ndj->dij", x, x).double()
    gram += torch.diag(torch.stack(_penalties(features, ridge)))
    weights = torch.linalg.solve(gram, torch.einsum("ndi,nd->di", x, targets).double())
    return list(weights.float().unbind(1))


def _penalties(features: list[torch.Tensor], ridge: list[float]) -> list[torch.Tensor]:
    return [r * f.square().mean().double() * len(f) for r, f in zip(ridge, features, strict=True)]


def _contracted(weight: torch.Tensor) -> torch.Tensor:
    """Scaled down if its spectral radius, bounded by ‖W^256‖^(1/256), is too large."""
    if weight.dim() == 1:
        return weight.clamp(-_MAX_RADIUS, _MAX_RADIUS)
    power = weight.double()
    for _ in range(8):
        power = power @ power
    radius = power.norm().item() ** (1 / 256)
    return weight * min(1.0, _MAX_RADIUS / max(radius, _MAX_RADIUS))


def _rows_of_tokens(
    token_ids: torch.Tensor, residual: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids (m,) int32 that are common enough, their rows (m, d) float16, and what is left of the
    residuals (n, d) when each token is predicted from the others of its id."""
    ids, place, counts = token_ids.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(ids), residual.shape[1]).index_add_(0, place, residual)
    common = counts >= _MIN_COUNT
    if int(common.sum()) > _MAX_ROWS:
        common &= counts > counts.sort(descending=True).values[_MAX_ROWS]
    others = (sums[place] - residual) / (counts[place] - 1 + _SHRINKAGE)[:, None]
    left = residual - torch.where(common[place][:, None], others, 0)
    rows = sums / (counts + _SHRINKAGE)[:, None]
    return ids[common].int(), rows[common].half(), left
