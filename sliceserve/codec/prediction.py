"""What the calibrated codec expects of a token before it sees it: the profile's predictor."""

from collections.abc import Sequence

import torch

from sliceserve.codec.base import CodecError, Run
from sliceserve.codec.profile import Profile
from sliceserve.kernels.row_products import row_products


class Prediction:
    """The terms of ``Profile``'s formula for p, on one device; None for those that it lacks.

    Every row is computed as if it were alone, so that the encoder's bytes do not depend on a batch.

    ``embeddings`` (vocab_size, d), of any floating dtype, stays on the CPU.
    """

    def __init__(
        self, profile: Profile, embeddings: torch.Tensor | None, device: torch.device
    ) -> None:
        self.mean = profile.mean.to(device)
        self.offset = profile.offset.to(device)
        self.vocab_size = profile.vocab_size
        self.embeddings = None
        self.token_weight = self.token_rows = self.token_places = self.state_weight = None
        if profile.token_weight is None:
            return
        assert profile.token_ids is not None and profile.token_rows is not None
        assert embeddings is not None
        self.embeddings = embeddings.contiguous()
        self.token_weight = profile.token_weight.float().to(device)
        rows = profile.token_rows.float()
        self.token_rows = torch.cat([rows, torch.zeros(1, profile.hidden_size)]).to(device)
        places = torch.full((profile.vocab_size,), len(rows), dtype=torch.int32)
        places[profile.token_ids.long()] = torch.arange(len(rows), dtype=torch.int32)
        # (vocab_size,), the last row for ids that have none.
        self.token_places = places.to(device)
        if profile.state_weight is not None:
            self.state_weight = profile.state_weight.float().to(device)

    @property
    def follows_states(self) -> bool:
        return self.state_weight is not None

    def refuse_unknown(self, token_ids: torch.Tensor) -> None:
        """Raise CodecError if one of (n,) has no embedding."""
        if self.embeddings is None or not len(token_ids):
            return
        if (largest := int(token_ids.max())) >= self.vocab_size:
            raise CodecError(f"token id {largest} is not below {self.vocab_size}, the vocabulary")

    def from_tokens(self, token_ids: torch.Tensor) -> torch.Tensor:
        """(n,) int64 on the CPU → (n, d), or (d,) for all of them: all terms but that of the
        previous state."""
        if self.embeddings is None:
            return self.offset
        assert self.token_places is not None and self.token_rows is not None
        assert self.token_weight is not None
        device = self.mean.device
        embedded = self.embeddings[token_ids].float().to(device)
        rows = self.token_rows[self.token_places[token_ids.to(device)]]
        return self.offset + rows + row_products(embedded, self.token_weight)

    def from_states(self, previous: torch.Tensor) -> torch.Tensor:
        """(n, d) decoded states → (n, d): the term that follows from them."""
        assert self.state_weight is not None
        return row_products(previous - self.mean, self.state_weight)

    def previous_of(self, runs: Sequence[Run]) -> torch.Tensor:
        """(len(runs), d): the state that each run's next row follows."""
        carried = [self.mean if r.previous is None else r.previous for r in runs]
        return torch.stack(carried).to(self.mean.device)
