"""Keys and tenants in a file of their own."""

import logging

import pytest

from sliceserve.configs import GatewayConfig, ServerConfig, TenantConfig
from sliceserve.configs.key_file import with_key_file
from sliceserve.configs.loading import ConfigError, dump_config
from sliceserve.configs.tenants import key_digest

HASHED = "sha256:" + key_digest("k-hashed").hex()
TEXT = f"""
api_keys: [k-more]
tenants:
  - {{name: lab, api_keys: ["{HASHED}"], tokens_per_minute: 1000, max_requests: 2, cuts: [0, 8]}}
"""


@pytest.fixture
def key_file(tmp_path):
    def write(text=TEXT, mode=0o600):
        path = tmp_path / "keys.yaml"
        path.write_text(text)
        path.chmod(mode)
        return str(path)

    return write


def test_what_the_file_names_is_added_to_the_settings(key_file):
    config = ServerConfig(
        api_keys=("k-door",),
        tenants=(TenantConfig(name="a", api_keys=("k-a",)),),
        api_keys_file=key_file(),
    )
    read = with_key_file(config)
    names = {"k-door": "default", "k-more": "default", "k-a": "a", "k-hashed": "lab"}
    expected = {key_digest(key): name for key, name in names.items()}
    assert read.keyring.tenant_of_digest == expected
    assert read.engine_for_tenants.scheduler.tenant_max_requests == {"lab": 2}
    assert "k-more" not in dump_config(read) + repr(read)
    assert HASHED not in dump_config(read) + repr(read)


def test_json_is_yaml_and_no_file_is_no_change(key_file):
    path = key_file('{"tenants": [{"name": "b", "api_keys": ["k"]}]}')
    assert with_key_file(ServerConfig(api_keys_file=path)).tenants[0].name == "b"
    assert with_key_file(ServerConfig()) == ServerConfig()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tenants: [{name: b, api_kyes: [k]}]", "did you mean api_keys?"),
        ("keys: [k]", "there is no setting keys; did you mean api_keys?"),
        ("api_keys: [k-door]", "keys.yaml, with the other settings: api_keys must be different"),
        (f"api_keys: ['sha256:{key_digest('k-door').hex()}']", "api_keys must be different"),
        ("api_keys: ['sha256:k-hush']", "after sha256: 64 hex digits"),
        ("api_keys: k-hush", "api_keys must be a list (a text each), got something else"),
        ("tenants: [{name: a, api_keys: [k-2]}]", "names of tenants must be different, got a twi"),
        ("tenants: [{name: b, api_keys: [k-2], cuts: 8}]", "cuts must be a list"),
    ],
)
def test_a_file_that_cannot_be_used_is_a_sentence_without_keys(key_file, text, words):
    config = ServerConfig(
        api_keys=("k-door",),
        tenants=(TenantConfig(name="a", api_keys=("k-a",)),),
        api_keys_file=key_file(text),
    )
    with pytest.raises(ConfigError) as caught:
        with_key_file(config)
    assert words in str(caught.value)
    assert "k-hush" not in str(caught.value)
    assert "k-door" not in str(caught.value)


def test_a_file_that_is_not_there_is_a_sentence():
    with pytest.raises(ConfigError, match=r"cannot read /nowhere/keys\.yaml"):
        with_key_file(ServerConfig(api_keys_file="/nowhere/keys.yaml"))


@pytest.mark.parametrize(("mode", "warns"), [(0o600, False), (0o640, False), (0o644, True)])
def test_a_file_that_all_can_read_is_warned_of(key_file, caplog, mode, warns):
    with caplog.at_level(logging.WARNING):
        with_key_file(ServerConfig(api_keys_file=key_file(mode=mode)))
    assert ("chmod 600" in caplog.text) == warns


@pytest.mark.parametrize("limit", [{"max_requests": 1}, {"max_sessions": 1}, {"cuts": (8,)}])
def test_a_gateway_has_no_limits_that_only_a_server_can_keep(limit):
    GatewayConfig(tenants=(TenantConfig(name="a", api_keys=("k",), requests_per_minute=5),))
    with pytest.raises(ValueError, match="set on the server, not on a gateway"):
        GatewayConfig(tenants=(TenantConfig(name="a", api_keys=("k",), **limit),))
