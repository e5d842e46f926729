"""Every setting is an option and every option a setting, with one text of help for both."""

import inspect

import pytest
from typer.testing import CliRunner

from sliceserve.cli import app
from sliceserve.cli.gateway import gateway
from sliceserve.cli.options import options_of
from sliceserve.cli.serve import serve
from sliceserve.configs import ClientConfig, GatewayConfig, ServerConfig
from sliceserve.configs.loading import load_config
from sliceserve.configs.settings import PANELS, leaves

CONFIGS = [ServerConfig, ClientConfig, GatewayConfig]
# Options that a command has for itself.
OWN = {"config", "print_config", "json"}


@pytest.mark.parametrize("cls", CONFIGS)
def test_every_setting_has_an_option_or_says_why_not(cls):
    offered = [key for option in options_of(cls).values() for key in option.keys]
    silent = [leaf.key for leaf in leaves(cls) if leaf.setting.flag is None]
    assert sorted(offered + silent) == sorted(leaf.key for leaf in leaves(cls))
    for leaf in leaves(cls):
        assert leaf.setting.help, leaf.key
        if leaf.flag is not None:
            assert leaf.setting.panel in PANELS


@pytest.mark.parametrize(("command", "cls"), [(serve, ServerConfig), (gateway, GatewayConfig)])
def test_a_command_has_no_option_that_is_not_a_setting(command, cls):
    assert set(inspect.signature(command).parameters) - OWN == set(options_of(cls))


@pytest.mark.parametrize("cls", CONFIGS)
def test_options_that_share_a_name_set_all_of_theirs(cls):
    shared = {name: one.keys for name, one in options_of(cls).items() if len(one.keys) > 1}
    if cls is ServerConfig:
        assert shared == {}
    else:
        assert shared == {"distortion": ("codec.slicer.distortion", "codec.calibrated.distortion")}


def test_help_is_sorted_by_topic_and_shows_the_defaults():
    result = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "120"})
    topics = ["Model", "Split", "Memory", "Scheduling", "Network", "Security"]
    places = [result.stdout.index(f"─ {topic} ─") for topic in topics]
    assert places == sorted(places)
    defaults = ServerConfig()
    for shown in (
        f"[{defaults.engine.model.model}]",
        f"[{defaults.port}]",
        "auto, cpu, cuda. [auto]",
        "[the quarters of the model]",
    ):
        assert shown in result.stdout


def test_presets_can_be_printed_as_one_line_of_json(tmp_path):
    result = CliRunner().invoke(
        app, ["serve", "--print-config", "--json", "--config", "laptop-server"]
    )
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1
    path = tmp_path / "printed.json"
    path.write_text(result.stdout)
    assert load_config(ServerConfig, path, env={}).engine.cache.num_tokens == 8192
