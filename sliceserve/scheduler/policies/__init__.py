"""Who goes next and who gives way: one class for each policy."""

from sliceserve.configs import SchedulerConfig
from sliceserve.scheduler.policies.fair import Fair
from sliceserve.scheduler.policies.policy import Policy
from sliceserve.scheduler.policies.prefill_aware import PrefillAware
from sliceserve.scheduler.policies.priority import Priority

_POLICIES: dict[str, type[Policy]] = {
    "fcfs": Policy,
    "priority": Priority,
    "fair": Fair,
    "prefill-aware": PrefillAware,
}


def make_policy(config: SchedulerConfig) -> Policy:
    return _POLICIES[config.policy](config)
