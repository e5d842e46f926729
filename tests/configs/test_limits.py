"""Settings out of range are refused where they are made, in a sentence."""

import pytest

from sliceserve.configs import (
    CacheConfig,
    CodecConfig,
    ModelConfig,
    SamplingParams,
    SchedulerConfig,
    ServerConfig,
    SlicerConfig,
)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SchedulerConfig(max_tokens_per_step=0), "max_tokens_per_step must be at least 1"),
        (lambda: SchedulerConfig(detached_timeout_s=-1), "detached_timeout_s must be 0 seconds"),
        (lambda: SchedulerConfig(policy="lifo"), "policy must be fcfs, .* or prefill-aware, got"),
        (lambda: SchedulerConfig(tenant_weights={"a": 0.0}), "weight of tenant 'a' must be 0.001"),
        (lambda: SchedulerConfig(long_prefill_share=0.0), "long_prefill_share must be above 0"),
        (lambda: SchedulerConfig(target_itl_ms=0.0), "target_itl_ms must be above 0"),
        (lambda: CacheConfig(block_size=0), "block_size must be 1 to 4096"),
        (lambda: CacheConfig(block_size=16, num_tokens=8), "at least one block of 16, got 8"),
        (lambda: CacheConfig(memory_fraction=1.5), "memory_fraction must be above 0"),
        (
            lambda: CodecConfig(name="zip"),
            "codec must be calibrated, slicer, .* or bfloat16, got 'zip'",
        ),
        (lambda: ModelConfig(dtype="float8"), "dtype must be auto, .* or bfloat16, got 'float8'"),
        (lambda: ModelConfig(device="tpu"), "device must be auto, cpu or cuda, got 'tpu'"),
        (lambda: SlicerConfig(sparsity=1.0), "sparsity must be at least 0 and below 1"),
        (lambda: SlicerConfig(num_blocks=3), "num_blocks must be 1, 2, 4, 8 or 16, got 3"),
        (lambda: SlicerConfig(max_bits=13), "max_bits must be 1 to 12"),
        (lambda: SlicerConfig(distortion=float("nan")), "distortion must be 0 to 1"),
        (lambda: SamplingParams(max_tokens=0), "max_tokens must be at least 1, got 0"),
        (lambda: SamplingParams(top_p=0.0), "top_p must be above 0"),
        (lambda: SamplingParams(temperature=float("nan")), "temperature must be 0 to 100"),
        (lambda: SamplingParams(seed=-1), "seed must be"),
        (lambda: SamplingParams(logprobs=21), "logprobs must be 0 to 20"),
        (lambda: ServerConfig(port=65536), "port must be 0 to 65535, got 65536"),
        (lambda: ServerConfig(port=-1), "port must be 0 to 65535, got -1"),
    ],
)
def test_out_of_range(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("config", [SchedulerConfig, CacheConfig, SlicerConfig, SamplingParams])
def test_the_defaults_are_in_range(config):
    assert config() == config()
