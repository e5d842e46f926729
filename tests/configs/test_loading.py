"""Settings from file, environment and command line: which wins, and what is refused how."""

from pathlib import Path

import pytest

from sliceserve.configs import ClientConfig, GatewayConfig, ServerConfig
from sliceserve.configs.loading import ConfigError, dump_config, load_config
from sliceserve.configs.presets import find_config, presets

PRESETS = presets()


@pytest.fixture
def yaml_file(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "settings.yaml"
        path.write_text(text)
        return path

    return write


def refusal(cls, **given) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(cls, **{"env": {}, **given})
    return str(caught.value)


def test_nothing_given_is_the_defaults():
    assert load_config(ServerConfig, env={}) == ServerConfig()


def test_the_command_line_beats_the_environment_which_beats_the_file(yaml_file):
    path = yaml_file("port: 1\nhost: a\nengine: {cache: {num_tokens: 64, block_size: 8}}\n")
    env = {
        "SLICESERVE_PORT": "2",
        "SLICESERVE_HOST": "b",
        "SLICESERVE_ENGINE__CACHE__NUM_TOKENS": "128",
    }
    config = load_config(ServerConfig, path, env, {"port": 3})
    assert (config.port, config.host) == (3, "b")
    assert (config.engine.cache.num_tokens, config.engine.cache.block_size) == (128, 8)
    assert config.engine.model == ServerConfig().engine.model


def test_lists_become_tuples(yaml_file):
    path = yaml_file("engine: {layers: {cuts: [8, 15]}}\napi_keys: [one]\n")
    config = load_config(ServerConfig, path, env={})
    assert config.engine.layers.cuts == (8, 15)
    assert config.api_keys == ("one",)


@pytest.mark.parametrize(
    ("text", "cuts"), [("8, 15,22", (8, 15, 22)), ("7", (7,)), ("", ()), ("15,", (15,))]
)
def test_text_is_read_as_a_list(text, cuts):
    name = "SLICESERVE_ENGINE__LAYERS__CUTS"
    assert load_config(ServerConfig, env={name: text}).engine.layers.cuts == cuts
    overrides = {"engine.layers.cuts": text}
    assert load_config(ServerConfig, env={}, overrides=overrides).engine.layers.cuts == cuts


def test_tables_are_read_from_files_and_from_text(yaml_file):
    path = yaml_file("engine: {scheduler: {tenant_weights: {gold: 2, the.rest: 0.5}}}")
    config = load_config(ServerConfig, path, env={})
    assert config.engine.scheduler.tenant_weights == {"gold": 2.0, "the.rest": 0.5}
    env = {"SLICESERVE_ENGINE__SCHEDULER__TENANT_WEIGHTS": "gold=3, iron = 1.5"}
    config = load_config(ServerConfig, path, env)
    assert config.engine.scheduler.tenant_weights == {"gold": 3.0, "iron": 1.5}


@pytest.mark.parametrize("text", ["gold", "gold=much"])
def test_a_table_without_numbers_is_refused(text):
    name = "SLICESERVE_ENGINE__SCHEDULER__TENANT_WEIGHTS"
    expected = f"{name}: engine.scheduler.tenant_weights must be a table of names (a number each), "
    assert refusal(ServerConfig, env={name: text}) == f"{expected}got {text!r}"


@pytest.mark.parametrize(("text", "expected"), [("true", True), ("0", False)])
def test_text_is_read_as_a_bool(text, expected):
    env = {"SLICESERVE_ENGINE__MODEL__TRUST_REMOTE_CODE": text}
    assert load_config(ServerConfig, env=env).engine.model.trust_remote_code is expected


def test_text_stays_text_where_text_is_wanted():
    env = {"SLICESERVE_SERVED_MODEL_NAME": "123", "SLICESERVE_API_KEYS": "a,b"}
    config = load_config(ServerConfig, env=env)
    assert (config.served_model_name, config.api_keys) == ("123", ("a", "b"))
    assert type(config.served_model_name) is str


def test_null_in_text_is_none():
    assert load_config(ClientConfig, env={"SLICESERVE_SPLIT": "null"}).split is None


def test_variables_of_others_are_left_alone():
    env = {"SLICESERVE_CACHE": "/tmp", "SLICESERVE_API_KEY": "client's", "PORT": "x"}
    assert load_config(ServerConfig, env=env) == ServerConfig()
    assert load_config(ClientConfig, env=env).api_key == "client's"


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("prt: 5", "port"),
        ("engine: {cach: {num_tokens: 1}}", "engine.cache.num_tokens"),
        ("engine: {cache: {num_token: 1}}", "engine.cache.num_tokens"),
        ("max_model_len: 5", "engine.model.max_model_len"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(yaml_file, text, nearest):
    message = refusal(ServerConfig, path=yaml_file(text))
    assert "settings.yaml" in message
    assert f"did you mean {nearest}?" in message


def test_an_unknown_key_like_no_other_lists_the_known(yaml_file):
    message = refusal(ClientConfig, path=yaml_file("qqqqqq: 1"))
    assert "no setting qqqqqq" in message
    assert "codec.slicer.sparsity" in message


def test_an_unknown_variable_of_a_known_group_is_named():
    message = refusal(ServerConfig, env={"SLICESERVE_ENGINE__CACHE__NUMTOKENS": "1"})
    assert message.startswith("SLICESERVE_ENGINE__CACHE__NUMTOKENS")
    assert "engine.cache.num_tokens" in message


def test_a_group_is_not_a_setting(yaml_file):
    message = refusal(ClientConfig, path=yaml_file("codec: int8"))
    assert "codec is a group of settings" in message
    assert "codec.name" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("port: '5'", "port must be a whole number, got '5'"),
        ("port: 5.5", "port must be a whole number, got 5.5"),
        ("port:", "port must be a whole number, got nothing"),
        ("drain_timeout_s: soon", "drain_timeout_s must be a number, got 'soon'"),
        (
            "engine: {cache: {num_tokens: [1]}}",
            "engine.cache.num_tokens must be a whole number or null, got [1]",
        ),
        (
            "engine: {layers: {cuts: [1, b]}}",
            "engine.layers.cuts must be a list (a whole number each) or null, got [1, 'b']",
        ),
        (
            "engine: {model: {device: tpu}}",
            "engine.model.device must be auto or cpu or cuda, got 'tpu'",
        ),
        (
            "engine: {model: {trust_remote_code: 1}}",
            "engine.model.trust_remote_code must be true or false, got 1",
        ),
    ],
)
def test_a_wrong_type_is_said_with_its_key(yaml_file, text, message):
    path = yaml_file(text)
    assert refusal(ServerConfig, path=path) == f"{path}: {message}"


def test_text_that_is_no_number_names_the_variable():
    message = refusal(ServerConfig, env={"SLICESERVE_PORT": "http"})
    assert message == "SLICESERVE_PORT: port must be a whole number, got 'http'"


def test_a_value_out_of_range_names_its_group():
    message = refusal(ClientConfig, overrides={"codec.slicer.sparsity": 1.5})
    assert message == "codec.slicer: sparsity must be at least 0 and below 1, got 1.5"


@pytest.mark.parametrize(
    ("text", "words"),
    [("a: [1", "not valid YAML"), ("[1, 2]", "must hold keys and values"), ("x", "got str")],
)
def test_a_file_that_is_no_settings_is_refused(yaml_file, text, words):
    assert words in refusal(ServerConfig, path=yaml_file(text))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    assert "cannot read" in refusal(ServerConfig, path=tmp_path / "none.yaml")


def test_an_empty_file_is_the_defaults(yaml_file):
    assert load_config(ServerConfig, yaml_file("# nothing\n"), env={}) == ServerConfig()


@pytest.mark.parametrize("cls", [ServerConfig, ClientConfig, GatewayConfig])
def test_a_dump_loads_as_the_same(yaml_file, cls):
    env = {
        "SLICESERVE_TENANTS": "[{name: default, weight: 2}]",
        "SLICESERVE_ENGINE__LAYERS__CUTS": "4",
    }
    config = load_config(cls, env=env)
    assert load_config(cls, yaml_file(dump_config(config)), env={}) == config


@pytest.mark.parametrize("name", PRESETS)
def test_presets_load_by_name(name):
    cls = ClientConfig if "client" in name else ServerConfig
    assert load_config(cls, find_config(name), env={}) != cls()
    # A comment says what it is for, and how it is used.
    assert f"--config {name}\n" in PRESETS[name].read_text()


def test_there_is_a_preset_for_each_kind_of_machine():
    assert set(PRESETS) == {
        "laptop-server",
        "one-gpu-server",
        "edge-client-cpu",
        "edge-client-small-gpu",
    }


@pytest.mark.parametrize("name", ["here.yaml", "./laptop-server", "some/where"])
def test_a_path_is_no_preset(name):
    assert find_config(name) == Path(name)


def test_a_preset_that_is_not_there_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean one-gpu-server"):
        find_config("one-gpu-sever")


def test_one_line_of_json_is_read_back(yaml_file):
    config = load_config(ServerConfig, env={"SLICESERVE_ENGINE__LAYERS__CUTS": "4"})
    line = dump_config(config, as_json=True)
    assert line.count("\n") == 1
    assert load_config(ServerConfig, yaml_file(line), env={}) == config
