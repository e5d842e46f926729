"""Everything that one engine needs to start."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from sliceserve.configs.model import CacheConfig, LayerConfig, ModelConfig
from sliceserve.configs.validation import expect, expect_one_of

AdmissionMode = Literal["preempt", "worst-case"]
ProfilesMode = Literal["auto", "off"]
PolicyName = Literal["fcfs", "priority", "fair", "prefill-aware"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Limits of one step and of the whole engine, in tokens (rows) and requests.

    ``max_tokens_per_step`` bounds the rows of one forward pass, ``max_requests_per_step`` the
    requests in it. ``max_requests`` is how many requests may be admitted (computing, waiting, or
    idle until their client's next token), ``tenant_max_requests`` how many of single tenants, by
    name. ``admission`` "preempt" admits all of these, and lets some wait and be computed again when
    KV blocks run out; "worst-case" admits those whose longest course fits. Of each tenant's split
    requests ``max_queued`` may wait to be admitted; others are refused.
    ``max_packet_bytes`` bounds the packets of split clients that are kept for replay, and
    ``credit_window`` how many tokens that are not yet computed one request may have sent.
    ``detached_timeout_s`` is how long a request whose client has gone waits for its return.

    ``policy`` says who goes next and who gives way (docs/scheduling.md). ``tenant_weights`` are the
    shares of "fair", 1 for tenants without one, and ``fair_burst_tokens`` are what a tenant that
    returns may be served ahead of others. ``long_prefill_tokens`` are where "prefill-aware" calls a
    prompt long, ``long_prefill_share`` is the part of a step that long ones may fill beside others.
    ``target_itl_ms`` bounds the seconds of a step, as far as rows can; None: no bound.
    """

    max_tokens_per_step: int = 512
    max_requests_per_step: int = 256
    max_requests: int = 1024
    tenant_max_requests: dict[str, int] = field(default_factory=dict)
    admission: AdmissionMode = "preempt"
    max_queued: int = 1024
    max_packet_bytes: int = 1 << 30
    credit_window: int = 2048
    detached_timeout_s: float = 60.0
    policy: PolicyName = "fcfs"
    tenant_weights: dict[str, float] = field(default_factory=dict)
    fair_burst_tokens: int = 1024
    long_prefill_tokens: int = 256
    long_prefill_share: float = 0.5
    target_itl_ms: float | None = None

    def __post_init__(self) -> None:
        for name in (
            "max_tokens_per_step",
            "max_requests_per_step",
            "max_requests",
            "credit_window",
            "long_prefill_tokens",
            "max_packet_bytes",
        ):
            expect(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        expect_one_of("admission", get_args(AdmissionMode), self.admission)
        expect(self.max_queued >= 0, "max_queued", "0 or more", self.max_queued)
        timeout = self.detached_timeout_s
        expect(timeout >= 0, "detached_timeout_s", "0 seconds or more", timeout)
        expect_one_of("policy", get_args(PolicyName), self.policy)
        for tenant, weight in self.tenant_weights.items():
            name = f"the weight of tenant {tenant!r}"
            expect(0.001 <= weight <= 1000, name, "0.001 to 1000", weight)
        burst = self.fair_burst_tokens
        expect(burst >= 0, "fair_burst_tokens", "0 or more", burst)
        share, target = self.long_prefill_share, self.target_itl_ms
        expect(0 < share <= 1, "long_prefill_share", "above 0 and at most 1", share)
        if target is not None:
            expect(0 < target < float("inf"), "target_itl_ms", "above 0 and finite", target)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """One engine over a range of layers: a head, a tail or a whole model.

    ``profiles`` "auto" offers the calibrated codec at every cut; the first start of a model makes
    its profiles, which takes minutes. "off" offers the codecs that need none. ``tensor_parallel``
    is how many ranks every layer is divided between: a GPU each, or a process each on CPUs.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    layers: LayerConfig = field(default_factory=LayerConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    profiles: ProfilesMode = "auto"
    tensor_parallel: int = 1

    def __post_init__(self) -> None:
        expect_one_of("profiles", get_args(ProfilesMode), self.profiles)
        ranks = self.tensor_parallel
        expect(ranks >= 1, "tensor_parallel", "at least 1 rank", ranks)
