"""GET /v1/models: what is served here."""

import time

from sliceserve.api.backend import Backend
from sliceserve.api.limits import Account
from sliceserve.api.replies import ModelCard, ModelList, ModelPermission


class ModelCards:
    """Descriptions of the models behind ``backend``; they stay the same as long as it serves."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        created = int(time.time())
        self._cards = {name: _card(name, backend, created) for name in backend.models}

    def all(self, account: Account) -> ModelList:
        """Those that the tenant may use."""
        names = filter(account.may_use, self._cards)
        return ModelList(data=[self._cards[name] for name in names])

    def one(self, name: str, account: Account) -> ModelCard:
        """Raises ApiError for a model that is not served here, or not to this tenant."""
        self._backend.expect_model(name)
        account.expect_model(name)
        return self._cards[name]


def _card(name: str, backend: Backend, created: int) -> ModelCard:
    permission = ModelPermission(id=f"modelperm-{backend.fingerprint[:32]}", created=created)
    return ModelCard(
        id=name,
        created=created,
        root=backend.models[0],
        max_model_len=backend.max_model_len,
        permission=[permission],
    )
