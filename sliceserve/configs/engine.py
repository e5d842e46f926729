"""Everything that one engine needs to start."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from sliceserve.configs.model import CacheConfig, LayerConfig, ModelConfig
from sliceserve.configs.validation import expect, expect_one_of

ProfilesMode = Literal["auto", "off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Limits of one step and of the whole engine, in tokens (rows) and requests.

    ``max_tokens_per_step`` bounds the rows of one forward pass, ``max_requests_per_step`` the
    requests in it. ``max_requests`` is how many requests may be live (computing, waiting, or idle
    until their client's next token); one more is refused. ``credit_window`` is how many tokens
    that are not yet computed a split client may have sent for one request.
    ``tenant_max_requests`` bounds the live requests of single tenants, by name.
    ``detached_timeout_s`` is how long a request whose client has gone waits for its return.
    """

    max_tokens_per_step: int = 512
    max_requests_per_step: int = 256
    max_requests: int = 1024
    tenant_max_requests: dict[str, int] = field(default_factory=dict)
    credit_window: int = 2048
    detached_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        for name in (
            "max_tokens_per_step",
            "max_requests_per_step",
            "max_requests",
            "credit_window",
        ):
            expect(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        timeout = self.detached_timeout_s
        expect(timeout >= 0, "detached_timeout_s", "0 seconds or more", timeout)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """One engine over a range of layers: a head, a tail or a whole model.

    ``profiles`` "auto" offers the calibrated codec at every cut; the first start of a model makes
    its profiles, which takes minutes. "off" offers the codecs that need none.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    layers: LayerConfig = field(default_factory=LayerConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    profiles: ProfilesMode = "auto"

    def __post_init__(self) -> None:
        expect_one_of("profiles", get_args(ProfilesMode), self.profiles)
