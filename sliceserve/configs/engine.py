"""Everything that one engine needs to start."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from sliceserve.configs.model import CacheConfig, LayerConfig, ModelConfig
from sliceserve.configs.settings import setting
from sliceserve.configs.validation import expect, expect_one_of

AdmissionMode = Literal["preempt", "worst-case"]
ProfilesMode = Literal["auto", "off"]
PolicyName = Literal["fcfs", "priority", "fair", "prefill-aware"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Limits of one step and of the whole engine, in tokens (rows) and requests.

    A request is admitted while it is computing, waiting, or idle until its client's next token.
    ``admission`` "preempt" admits ``max_requests`` of them, and lets some wait and be computed
    again when KV blocks run out; "worst-case" admits those whose longest course fits.
    ``tenant_max_requests`` bounds those of single tenants, by name.

    ``policy`` says who goes next and who gives way (docs/scheduling.md). ``tenant_weights`` are the
    shares of "fair", 1 for tenants without one. ``target_itl_ms`` bounds a step, as far as rows
    can; None: no bound.
    """

    policy: PolicyName = setting(
        "fcfs", "Who goes next, and who gives way; see docs/scheduling.md.", "Scheduling"
    )
    target_itl_ms: float | None = setting(
        None,
        "Keep steps so short that tokens follow each other within this many milliseconds, where "
        "prompts would hold them up.",
        "Scheduling",
        shown="no bound",
    )
    max_requests: int = setting(
        1024, "Most requests that live at once; others wait or are refused.", "Scheduling"
    )
    max_tokens_per_step: int = setting(512, "Most tokens of one forward pass.", "Scheduling")
    max_requests_per_step: int = setting(256, "Most requests in one forward pass.", "Scheduling")
    admission: AdmissionMode = setting(
        "preempt",
        "Compute requests again when KV blocks run out, or admit those alone whose longest course "
        "fits.",
        "Scheduling",
    )
    max_queued: int = setting(
        1024, "Most split requests of a tenant that wait to be admitted.", "Scheduling"
    )
    fair_burst_tokens: int = setting(
        1024,
        "fair: what a tenant that returns may be served ahead of others, in tokens.",
        "Scheduling",
    )
    long_prefill_tokens: int = setting(
        256, "prefill-aware: from how many tokens on a prompt is long.", "Scheduling"
    )
    long_prefill_share: float = setting(
        0.5,
        "prefill-aware: the part of a step that long prompts may fill beside others.",
        "Scheduling",
    )
    tenant_max_requests: dict[str, int] = setting(
        help="The tenants' own max_requests say it.", flag=None, factory=dict
    )
    tenant_weights: dict[str, float] = setting(
        help="The tenants' own weight says it.", flag=None, factory=dict
    )
    max_packet_bytes: int = setting(
        1 << 30, "Most bytes of packets that are kept for replay.", "Memory", shown="1 GiB"
    )
    credit_window: int = setting(
        2048, "Tokens that a split request may have sent ahead of their computation.", "Split"
    )
    detached_timeout_s: float = setting(
        60.0,
        "Seconds that a split request waits for a client whose line was lost.",
        "Split",
        flag="detached-timeout",
    )

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

    ``tensor_parallel`` is how many ranks every layer is divided between.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    layers: LayerConfig = field(default_factory=LayerConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    profiles: ProfilesMode = setting(
        "auto",
        "auto makes the calibrated codec's profiles at a model's first start, which takes minutes; "
        "off does without that codec.",
        "Split",
    )
    tensor_parallel: int = setting(
        1,
        "Divide every layer between so many GPUs, or processes on a CPU; it must divide the "
        "model's heads.",
        "Model",
    )

    def __post_init__(self) -> None:
        expect_one_of("profiles", get_args(ProfilesMode), self.profiles)
        ranks = self.tensor_parallel
        expect(ranks >= 1, "tensor_parallel", "at least 1 rank", ranks)
