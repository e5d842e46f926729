"""Options made from settings: every field that names a flag is one, with the field's own help.

An option that is not given is None, and leaves its setting to the environment, the YAML file and
the defaults, in this order.
"""

import functools
import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from operator import attrgetter
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from sliceserve.configs import ClientConfig, ServerConfig
from sliceserve.configs.loading import dump_config, load_config
from sliceserve.configs.presets import find_config
from sliceserve.configs.settings import PANELS, Leaf, leaves

# Short ones leave the width of `--help` to its sentences.
_METAVARS = {bool: "", int: "N", float: "X"}

SERVER = ServerConfig()
CLIENT = ClientConfig()

ConfigFile = Annotated[
    str | None,
    typer.Option(
        "--config",
        help="YAML file with settings, or the name of one of those in configs/.",
        metavar="FILE",
        show_default=False,
    ),
]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print the settings that result, and stop.")
]


@dataclass(frozen=True, slots=True)
class SettingOption:
    """An option of the command line, and the ``keys`` of the settings that it sets."""

    name: str
    keys: tuple[str, ...]
    annotation: Any
    panel: str


@functools.cache
def options_of(cls: type[Any]) -> dict[str, SettingOption]:
    """The options that a class of settings offers, by the names of their parameters, in the order
    of `--help`."""
    found: dict[str, SettingOption] = {}
    defaults = cls()
    for leaf in leaves(cls):
        if leaf.flag is None:
            continue
        name = leaf.flag.replace("-", "_")
        if (same := found.get(name)) is not None:
            found[name] = SettingOption(name, (*same.keys, leaf.key), same.annotation, same.panel)
            continue
        annotation = _annotation(leaf, attrgetter(leaf.key)(defaults))
        found[name] = SettingOption(name, (leaf.key,), annotation, leaf.setting.panel)
    ordered = sorted(found.values(), key=lambda option: PANELS.index(option.panel))
    return {option.name: option for option in ordered}


def takes(
    cls: type[Any], without: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command, in its parameter ``settings``, a ``cls`` made of the options that it offers,
    but those ``without``; and `--config` and `--print-config` besides."""
    offered = {name: one for name, one in options_of(cls).items() if name not in without}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**given: Any) -> None:
            config, print_config = given.pop("config"), given.pop("print_config")
            values = {name: given.pop(name) for name in offered}
            settings = _load(cls, config, values)
            if print_config:
                typer.echo(dump_config(settings, as_json=given.get("json", False)), nl=False)
                return
            command(settings=settings, **given)

        parameters = _parameters(command, offered)
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run

    return decorate


def client_config(config: str | None = None, **options: Any) -> ClientConfig:
    """Settings of a split client from options by name. Raises ConfigError."""
    settings: ClientConfig = _load(ClientConfig, config, options)
    return settings


def _load(cls: type[Any], config: str | None, options: dict[str, Any]) -> Any:
    offered = options_of(cls)
    overrides = {
        key: ",".join(value) if isinstance(value, list) else value
        for name, value in options.items()
        for key in offered[name].keys
        if value is not None
    }
    return load_config(cls, None if config is None else find_config(config), overrides=overrides)


def _parameters(
    command: Callable[..., None], offered: dict[str, SettingOption]
) -> list[inspect.Parameter]:
    """Those of ``command``, with the options in the place of its ``settings``."""
    keyword = inspect.Parameter.KEYWORD_ONLY

    def parameter(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
        return inspect.Parameter(name, keyword, default=default, annotation=annotation)

    found = []
    for own in inspect.signature(command, eval_str=True).parameters.values():
        if own.name == "settings":
            found += [
                parameter("config", ConfigFile),
                parameter("print_config", PrintConfig, False),
            ]
        else:
            found.append(own.replace(kind=keyword))
    return found + [parameter(one.name, one.annotation) for one in offered.values()]


def _annotation(leaf: Leaf, default: Any) -> Any:
    """What typer makes an option of."""
    kind = _kind(leaf.hint)
    # What is off is turned on; what is on, either: a file may have turned it off.
    name = f"--{leaf.flag}/--no-{leaf.flag}" if default is True else f"--{leaf.flag}"
    shown = leaf.setting.shown or _in_words(default)
    choices = f" {', '.join(get_args(kind))}." if get_origin(kind) is Literal else ""
    option = typer.Option(
        name,
        help=f"{leaf.setting.help}{choices} [dim]\\[{shown}][/dim]",
        metavar=_METAVARS.get(kind, "NAME" if get_origin(kind) is Literal else "TEXT"),
        rich_help_panel=leaf.setting.panel,
        # Typer's own takes a line to itself.
        show_default=False,
    )
    return Annotated[kind | None, option]


def _kind(hint: Any) -> Any:
    """The type of an option whose field has the type ``hint``. What the command line has no type
    for is text, which is read as text from the environment is."""
    options = [one for one in get_args(hint) if one is not type(None)]
    if get_origin(hint) is not Literal and len(options) == 1:
        hint = options[0]
    if hint == tuple[str, ...]:
        return list[str]
    if hint in (bool, int, float, str) or get_origin(hint) is Literal:
        return hint
    return str


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def _shared(name: str) -> Any:
    return options_of(ClientConfig)[name].annotation


# For commands that take some of a client's settings.
Model = _shared("model")
Dtype = _shared("dtype")
Device = _shared("device")
Server = _shared("server")
ServerKey = _shared("api_key")
Split = _shared("split")
Codec = _shared("codec")
Sparsity = _shared("sparsity")
Distortion = _shared("distortion")
HideTokens = _shared("hide_tokens")
