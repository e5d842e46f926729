"""Tenants in the settings: whose key is whose, what is refused, and that no key is shown."""

import pytest

from sliceserve.configs import ClientConfig, ServerConfig, TenantConfig
from sliceserve.configs.loading import ConfigError, dump_config, load_config
from sliceserve.configs.tenants import key_digest

TENANTS = """
api_keys: [k-door]
tenants:
  - {name: a, api_keys: [k-a1, k-a2], weight: 3, max_requests: 5}
  - {name: b, api_keys: [k-b]}
"""


def tenant_of_key(config):
    names = config.keyring.tenant_of_digest
    keys = {key_digest(key): key for key in ("k-door", "k-a1", "k-a2", "k-b", "k")}
    return {keys[digest]: name for digest, name in names.items()}


def load(text="", **env):
    return load_config(ServerConfig, None, {"SLICESERVE_TENANTS": text} if text else env)


def refusal(text):
    with pytest.raises(ConfigError) as caught:
        load(text)
    return str(caught.value)


def test_every_key_stands_for_one_tenant(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text(TENANTS)
    config = load_config(ServerConfig, path, {})
    assert config.tenants[0] == TenantConfig(
        name="a", api_keys=("k-a1", "k-a2"), weight=3.0, max_requests=5
    )
    expected = {"k-door": "default", "k-a1": "a", "k-a2": "a", "k-b": "b"}
    assert tenant_of_key(config) == expected
    scheduler = config.engine_for_tenants.scheduler
    assert scheduler.tenant_max_requests == {"a": 5}
    assert scheduler.tenant_weights == {"a": 3.0, "b": 1.0}


def test_tenants_come_by_the_environment_too():
    config = load('[{"name": "a", "api_keys": ["k"]}, {"name": "default", "max_requests": 2}]')
    assert tenant_of_key(config) == {"k": "a"}
    assert config.engine_for_tenants.scheduler.tenant_max_requests == {"default": 2}


def test_without_keys_there_are_none():
    assert ServerConfig().keyring.tenant_of_digest == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{name: a}", "tenants must be a list, each item with some of name, api_keys, weight"),
        ("[a, b]", "tenants must be a list"),
        ("[{name: a", "tenants must be a list"),
        ("[{name: a, wieght: 2}]", "tenants[0]: there is no setting wieght; did you mean weight?"),
        ("[{name: a, weight: much}]", "tenants[0]: weight must be a number, got 'much'"),
        ("[{name: a, api_keys: [k], weight: 0}]", "weight of tenant a must be 0.001 to 1000"),
        ("[{name: '', api_keys: [k]}]", "name of a tenant must be a text"),
        (
            "[{name: a, api_keys: [k], max_requests: 0}]",
            "max_requests of tenant a must be at least 1, got 0",
        ),
        ("[{name: a, api_keys: [k]}, {name: a, api_keys: [l]}]", "must be different, got a twice"),
        ("[{name: a}]", "tenants must be given api_keys, got none for a"),
        ("[{name: a, api_keys: [k]}, {name: b, api_keys: [k]}]", "api_keys must be different"),
        ("[{name: a, api_keys: ['']}]", "api_keys of tenant a must be not empty"),
    ],
)
def test_what_makes_no_sense_is_refused(text, words):
    assert words in refusal(text)


@pytest.mark.parametrize("text", ["[{name: a, api_keys: hush}]", "[{name: a, api_keys: [[hush]]}]"])
def test_no_key_is_shown_when_it_is_refused(text):
    words = refusal(text)
    assert "hush" not in words
    assert "api_keys must be a list (a text each)" in words


def test_no_key_is_shown_in_a_dump_or_a_repr(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text(TENANTS)
    for config in (load_config(ServerConfig, path, {}), ClientConfig(api_key="k-door")):
        dump = dump_config(config)
        assert "<hidden>" in dump
        assert "k-" not in dump + repr(config)
    # A server that is started from what was printed does not let everybody in.
    path.write_text(dump_config(ServerConfig(api_keys=("k",))))
    with pytest.raises(ConfigError, match="api_keys must be a list"):
        load_config(ServerConfig, path, {})
