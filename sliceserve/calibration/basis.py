"""Which errors matter: the basis in which residuals are coded, and the tokens to code more finely.

An error e at a cut changes the answer by about e·F·e / 2 nats, where F is the Fisher information,
the second moment of the gradients. In a basis where F is the identity, one step for all components
spends bits best; and tokens whose gradients are larger than others' deserve smaller steps.
"""

import math

import torch

# F is estimated from few tokens, and errors are not small: so much of the identity is mixed in.
_IDENTITY = 0.3
# Steps follow the inverse square root of a token's gradients if raised to 1; errors are not small,
# and the larger of them cost more than F says.
_EXPONENT = 0.5
# Ridge term of the regression of a token's sensitivity, in standard deviations squared per token.
_RIDGE = 0.012
_POINTS_PER_OCTAVE = 4


def coding_basis(
    residual: torch.Tensor, gradients: torch.Tensor, transform: bool = True
) -> torch.Tensor:
    """Residuals (n, d) and gradients (m, d) → (d, d) float16, rows by falling variance of their
    component: the principal components of residuals that are weighted by F. Without ``transform``
    the weights alone, (d,)."""
    num_rows, hidden_size = residual.shape
    if not transform:
        energy = gradients.square().mean(0)
        return ((1 - _IDENTITY) * energy / energy.mean() + _IDENTITY).rsqrt().half()
    fisher = (gradients.T @ gradients).double()
    fisher /= fisher.diagonal().mean()
    fisher = (1 - _IDENTITY) * fisher + _IDENTITY * torch.eye(hidden_size, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(fisher)
    root = vectors @ torch.diag(values.sqrt()) @ vectors.T
    inverse_root = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    covariance = root @ (residual.T @ residual).double() @ root / num_rows
    components = torch.linalg.eigh(covariance).eigenvectors.flip(1)
    return (components.T @ inverse_root).half()


def sensitivity(states: torch.Tensor, mean: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """States (m, d) and gradients (m, n, d), n for each of them → the profile's ``sensitivity``
    (d + 1,)."""
    x = states - mean
    scale = x.std(0).clamp_min(1e-6)
    x = torch.cat([x / scale, torch.ones(len(x), 1)], dim=1)
    log_energy = gradients.square().sum(2).mean(1).clamp_min(1e-20).log()
    center, spread = log_energy.mean(), 3 * log_energy.std()
    target = (log_energy - center).clamp(-spread, spread)
    gram = x.T @ x + _RIDGE * len(x) * torch.eye(x.shape[1])
    weights = torch.linalg.solve(gram, x.T @ target)
    weights[:-1] /= scale
    # log2 of the step is -½ · exponent · log2 of the energy.
    return weights * (-0.5 * _EXPONENT * _POINTS_PER_OCTAVE / math.log(2))
