"""What a codec does to the next-token distributions of a text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sliceserve.evaluation.model import WholeModel
from sliceserve.evaluation.points import Sweep, choose_points, run_coded
from sliceserve.evaluation.progress import Progress, silent
from sliceserve.evaluation.prompts import Prompt
from sliceserve.evaluation.states import run_uncut

# Logits are wide: so many rows of them at a time stay in reach of the caches.
_ROWS_OF_LOGITS = 128


@dataclass(slots=True)
class _Sums:
    """Over the positions: KL and negative log-likelihoods in nats, agreements of first choices."""

    kl: float = 0.0
    nll: float = 0.0
    num_same: int = 0


@torch.inference_mode()
def text_quality(
    model: WholeModel, windows: Sequence[Prompt], sweep: Sweep, progress: Progress = silent
) -> list[dict[str, Any]]:
    """One result for each operating point of ``sweep``: its description, and

    kl: KL(uncut ‖ coded) in nats, the mean over all positions; top1: the share of positions whose
    likeliest token is the same; ppl and ppl_uncompressed: the perplexities of the windows' tokens
    but the first of each; ppl_change: what the first adds to the second, relative to it.
    """
    states, uncut = run_uncut(model, windows, sweep.cuts, progress)
    points = choose_points(model, windows, states, sweep)
    coded = [
        run_coded(model, windows, states[point.cut], point, sweep.tokens_per_frame, progress)
        for point in points
    ]
    num_tokens = len(uncut)
    following = _following(windows, model.device)
    num_predicted = int((following >= 0).sum())
    own, sums = _compare(model, uncut, [final for final, _ in coded], following, progress)
    ppl_uncompressed = math.exp(own.nll / num_predicted)
    results = []
    for point, (_, traffic), total in zip(points, coded, sums, strict=True):
        ppl = math.exp(total.nll / num_predicted)
        results.append(
            point.describe(model, traffic)
            | {
                "tokens": num_tokens,
                "tokens_per_frame": sweep.tokens_per_frame,
                "kl": total.kl / num_tokens,
                "ppl": ppl,
                "ppl_uncompressed": ppl_uncompressed,
                "ppl_change": ppl / ppl_uncompressed - 1,
                "top1": total.num_same / num_tokens,
            }
        )
    return results


def _following(windows: Sequence[Prompt], device: torch.device) -> torch.Tensor:
    """(T,) int64: the token after each, -1 where the window ends."""
    ids = [i for window in windows for i in (*window.token_ids[1:], -1)]
    return torch.tensor(ids, device=device)


def _compare(
    model: WholeModel,
    uncut: torch.Tensor,
    finals: Sequence[torch.Tensor],
    following: torch.Tensor,
    progress: Progress,
) -> tuple[_Sums, list[_Sums]]:
    """Sums of the uncut model, and of each of ``finals``: what left the last layer, (T,
    hidden_size). Logits of the uncut model are computed once, a few rows at a time."""
    own, sums = _Sums(), [_Sums() for _ in finals]
    starts = range(0, len(uncut), _ROWS_OF_LOGITS)
    with progress("comparing, chunks", len(starts)) as advance:
        for start in starts:
            rows = slice(start, start + _ROWS_OF_LOGITS)
            logits = model.decoder.logits(uncut[rows])  # (n, vocab)
            log_total = logits.logsumexp(-1)
            best = logits.argmax(-1)
            own.nll += _nll(logits, log_total, following[rows])
            probabilities = (logits - log_total.unsqueeze(1)).exp_()
            for final, total in zip(finals, sums, strict=True):
                coded = model.decoder.logits(final[rows])
                coded_log_total = coded.logsumexp(-1)
                total.nll += _nll(coded, coded_log_total, following[rows])
                total.num_same += int((coded.argmax(-1) == best).sum())
                # Σ p (log p − log q), with what is constant over the vocabulary taken out.
                differences = torch.linalg.vecdot(probabilities, logits - coded)
                total.kl += float((differences - log_total + coded_log_total).sum())
            advance()
    return own, sums


def _nll(logits: torch.Tensor, log_total: torch.Tensor, following: torch.Tensor) -> float:
    """The sum over the rows that something follows."""
    known = following >= 0
    chosen = logits.gather(1, following.clamp(min=0).unsqueeze(1)).squeeze(1)
    return float((log_total - chosen)[known].sum())
