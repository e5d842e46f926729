"""Where the engine says that time goes, with a clock that is set by hand."""

import pytest

from sliceserve.configs import SamplingParams
from sliceserve.engine.distribution import Distribution
from sliceserve.engine.timing import Timekeeper
from sliceserve.scheduler.errors import SchedulerError
from sliceserve.scheduler.plan import ScheduledRequest
from sliceserve.scheduler.request import Request


def request_of(entry_layer=0, prompt=(1, 2, 3), outputs=()):
    return Request(
        "r",
        num_prompt=3,
        prompt=prompt,
        outputs=outputs,
        entry_layer=entry_layer,
        sampling=SamplingParams(),
    )


def step(times, request, now):
    part = ScheduledRequest(request.request_id, request.entry_layer, 0, [], [])
    times.start([part], now)


def sample(times, request, exit_s, now):
    """A token comes, which a whole model knows at once and a tail when its packet comes."""
    request.num_computed = request.num_known
    request.outputs.append(7)
    if request.entry_layer == 0:
        request.inputs.append(7)
    return times.finish(request, exit_s, True, now)


def test_a_request_is_queued_until_its_first_step_and_its_tokens_follow_each_other():
    times, request = Timekeeper(), request_of()
    times.open(request, 10.0)
    times.admit(request, 10.0)
    times.note_ready(request, 10.0)
    step(times, request, 12.0)
    step(times, request, 13.0)
    first = sample(times, request, 0.5, 14.0)
    assert (first.queue_s, first.layers_s, first.exit_s) == (2.0, 1.5, 0.5)
    step(times, request, 14.25)
    second = sample(times, request, 0.25, 15.0)
    assert (second.queue_s, second.layers_s, second.exit_s) == (0.25, 0.5, 0.25)
    times.end("r")
    stats = times.paths["thin"]
    # The first token is the prompt's, not one of those that follow each other.
    assert stats.token_times == second
    assert stats.queue_seconds.total == 2.0
    assert stats.prefill_seconds.total == 2.0
    assert stats.decode_seconds.total == 1.0
    assert stats.inference_seconds.total == 3.0
    assert times.paths["split"].queue_seconds.total == 0.0


def test_a_split_request_waits_for_admission_and_for_steps_but_not_for_its_client():
    times, request = Timekeeper(), request_of(entry_layer=3, prompt=())
    times.open(request, 0.0)
    times.note_ready(request, 0.0)
    times.admit(request, 4.0)
    # It is told of more room later; that is no second admission.
    times.admit(request, 99.0)
    request.inputs += [b"a", b"b", b"c"]
    times.note_ready(request, 6.0)
    step(times, request, 7.0)
    first = sample(times, request, 0.0, 8.0)
    assert (first.queue_s, first.layers_s) == (4.0 + 1.0, 1.0)
    request.inputs.append(b"d")
    times.note_ready(request, 20.0)
    step(times, request, 20.0)
    second = sample(times, request, 0.0, 21.0)
    assert (second.queue_s, second.layers_s) == (0.0, 1.0)


def test_a_request_that_was_begun_elsewhere_has_no_first_token_here():
    times, request = Timekeeper(), request_of(outputs=(5, 6))
    times.open(request, 0.0)
    times.note_ready(request, 0.0)
    step(times, request, 1.0)
    sample(times, request, 0.0, 2.0)
    assert times.paths["thin"].queue_seconds.total == 0.0
    assert sum(times.paths["thin"].prefill_seconds.counts) == 0


def test_one_that_ends_without_a_token_took_no_time_for_any():
    times, request = Timekeeper(), request_of()
    times.open(request, 0.0)
    with pytest.raises(SchedulerError, match="'r'"):
        times.check([])
    times.end("r")
    times.end("unknown")
    times.check([])
    assert sum(times.paths["thin"].inference_seconds.counts) == 0


def test_values_are_counted_up_to_and_with_their_bound():
    sizes = Distribution.over([1, 10])
    for value in (0, 1, 1.5, 10, 11):
        sizes.add(value)
    assert sizes.counts == [2, 2, 1]
    assert sizes.total == 23.5
