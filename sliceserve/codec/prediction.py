"""What the calibrated codec expects of a token before it sees it: the profile's predictor."""

from collections.abc import Callable, Iterator, Sequence

import torch

from sliceserve.codec.base import Run
from sliceserve.codec.profile import Profile
from sliceserve.kernels.row_products import row_products

# Token ids (n,) int64 → rows of the model's embedding (n, hidden_size) float32, as stored.
Embed = Callable[[torch.Tensor], torch.Tensor]


class Prediction:
    """The terms of ``Profile``'s formula for p, on one device.

    Every row is computed as if it were alone, so that the encoder's bytes do not depend on a batch.
    """

    def __init__(self, profile: Profile, embed: Embed | None, device: torch.device) -> None:
        self._mean = profile.mean.to(device)
        self._offset = profile.offset.to(device)
        self.follows_states = profile.state_weight is not None
        self._embed = embed
        self._device = device
        if profile.token_weight is None:
            return
        assert profile.token_ids is not None and profile.token_rows is not None
        self._token_weight = profile.token_weight.float().to(device)
        rows = profile.token_rows.float()
        self._rows = torch.cat([rows, torch.zeros(1, profile.hidden_size)]).to(device)
        place = torch.full((profile.vocab_size,), len(rows), dtype=torch.int32)
        place[profile.token_ids.long()] = torch.arange(len(rows), dtype=torch.int32)
        self._place = place.to(device)  # (vocab_size,), the last row for ids that have none
        if profile.state_weight is not None:
            self._state_weight = profile.state_weight.float().to(device)

    def from_tokens(self, token_ids: torch.Tensor) -> torch.Tensor:
        """(n,) int64 on the CPU → (n, d), or (d,) for all of them: all terms but that of the
        previous state."""
        if self._embed is None:
            return self._offset
        embedded = self._embed(token_ids).to(self._device)
        rows = self._rows[self._place[token_ids.to(self._device)]]
        return self._offset + rows + row_products(embedded, self._token_weight)

    def from_states(self, previous: torch.Tensor) -> torch.Tensor:
        """(n, d) decoded states → (n, d): the term that follows from them."""
        return row_products(previous - self._mean, self._state_weight)

    def previous_of(self, runs: Sequence[Run]) -> torch.Tensor:
        """(len(runs), d): the state that each run's next row follows."""
        carried = [self._mean if r.previous is None else r.previous for r in runs]
        return torch.stack(carried).to(self._device)


def waves(runs: Sequence[Run]) -> Iterator[tuple[torch.Tensor, list[Run]]]:
    """The first rows of all runs, then the second, and so on: (n,) int64 places in the batch, and
    the run of each. Rows of one wave do not depend on each other."""
    starts = [0]
    for run in runs:
        starts.append(starts[-1] + run.num_rows)
    current = [(start, run) for start, run in zip(starts, runs, strict=False) if run.num_rows]
    depth = 0
    while current:
        yield torch.tensor([start + depth for start, _ in current]), [run for _, run in current]
        depth += 1
        current = [(start, run) for start, run in current if run.num_rows > depth]
