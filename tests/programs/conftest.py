"""Programs that know nothing of this one, against a server and against a gateway: only address, key
and model's name are set."""

from dataclasses import dataclass

import pytest
from processes import GATEWAY_KEY, running_gateway, skip_without_default_model

from sliceserve.cli.local_server import local_server
from sliceserve.configs import DEFAULT_MODEL


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "programs":
            for mark in (pytest.mark.e2e, pytest.mark.model, pytest.mark.timeout(600)):
                item.add_marker(mark)


@dataclass(frozen=True)
class Endpoint:
    """What a program is told; ``base_url`` is OpenAI's, with the /v1."""

    base_url: str
    api_key: str
    model: str = DEFAULT_MODEL


@pytest.fixture(scope="session")
def server():
    skip_without_default_model()
    options = ["--cuts", "8", "--kv-cache-tokens", "8192", "--profiles", "off"]
    with local_server(options) as server:
        yield server


@pytest.fixture(scope="session", params=["serve", "gateway"])
def endpoint(request, server):
    if request.param == "serve":
        yield Endpoint(f"{server.url}/v1", server.api_key)
        return
    with running_gateway(server) as url:
        yield Endpoint(f"{url}/v1", GATEWAY_KEY)
