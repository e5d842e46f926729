"""Settings from a YAML file, the environment and the command line; the later wins."""

import dataclasses
import difflib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

import msgspec
import yaml

from sliceserve.configs.settings import leaves, setting_of

ENV_PREFIX = "SLICESERVE_"

Config = TypeVar("Config")

_HIDDEN = "<hidden>"
_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


class ConfigError(ValueError):
    """A setting that cannot be used: where it was given, what was expected, what to do."""


def load_config(
    cls: type[Config],
    path: Path | Mapping[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """A ``cls``, one of the frozen dataclasses of settings: its defaults, then the YAML file
    ``path`` or a mapping as from one, then ``env`` (None: the process's own), then ``overrides``.

    Keys are dotted paths to a field ("engine.cache.num_tokens"). In the environment that key is
    SLICESERVE_ENGINE__CACHE__NUM_TOKENS; variables whose first part names no field of ``cls`` are
    somebody else's. Types are strict, but text from the environment or in ``overrides`` is read as
    the field's type, lists as items between commas, tables as such items "name=value", lists of
    groups as YAML. Raises ConfigError.
    """
    values: dict[str, Any] = {}
    for given in _given(cls, path, os.environ if env is None else env, overrides or {}):
        values[given.key] = _value(cls, given)
    try:
        return msgspec.convert(_nest(values), cls)
    except msgspec.ValidationError as error:
        # A check in __post_init__: its sentence names the field, the path the group it is in.
        sentence, _, group = str(error).partition(" - at `$.")
        raise ConfigError(f"{group.rstrip('`')}: {sentence}" if group else sentence) from error


def dump_config(config: Any, as_json: bool = False) -> str:
    """The YAML that ``load_config`` reads back as ``config``, every field written out but secrets:
    where one is set there is a word that no list of keys can be read from. ``as_json``: the same in
    one line of JSON, which is YAML too."""
    shown = _shown(config)
    return f"{json.dumps(shown)}\n" if as_json else yaml.safe_dump(shown, sort_keys=False)


def _shown(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_shown(item) for item in value]
    if not dataclasses.is_dataclass(value):
        return msgspec.to_builtins(value)
    shown = {}
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        is_hidden = bool(inner) and setting_of(field).secret
        shown[field.name] = _HIDDEN if is_hidden else _shown(inner)
    return shown


@dataclasses.dataclass(frozen=True)
class _Given:
    """A value for ``key``, and where it comes from. ``is_text``: it stands for a value of the
    field's type."""

    source: str
    key: str
    value: Any
    is_text: bool = False


def _given(
    cls: type[Any],
    path: Path | Mapping[str, Any] | None,
    env: Mapping[str, str],
    overrides: Mapping[str, Any],
) -> Iterator[_Given]:
    """What was given, the weakest first."""
    if path is not None:
        tree = _read_yaml(path) if isinstance(path, Path) else dict(path)
        source = str(path) if isinstance(path, Path) else "settings"
        for key, value in _flatten(tree, _hints(cls)):
            yield _Given(source, key, value)
    for name in sorted(env):
        key = name.removeprefix(ENV_PREFIX).lower().replace("__", ".")
        if name.startswith(ENV_PREFIX) and key.split(".")[0] in get_type_hints(cls):
            yield _Given(name, key, env[name], is_text=True)
    for key, value in overrides.items():
        yield _Given("command line", key, value, isinstance(value, str))


def _read_yaml(path: Path) -> dict[Any, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold keys and values, got {type(tree).__name__}")
    return tree


def _flatten(
    tree: dict[Any, Any], fields: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything that is not a group; a field may itself be a table."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and key not in fields:
            yield from _flatten(value, fields, f"{key}.")
        else:
            yield key, value


def _nest(values: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *groups, name = key.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[name] = value
    return tree


def _value(cls: type[Any], given: _Given) -> Any:
    """The value, checked, in the field's type."""
    fields = _hints(cls)
    if given.key not in fields:
        raise ConfigError(f"{given.source}: {_unknown(given.key, list(fields))}")
    hint, value = fields[given.key], given.value
    if (group := _group_in_list(hint)) is not None:
        return _groups(group, given)
    if given.is_text and (_may_be(tuple, hint) or _may_be(dict, hint)):
        value = [item.strip() for item in value.split(",") if item.strip()]
    if given.is_text and _may_be(dict, hint):
        pairs = (item.partition("=") for item in value)
        value = {name.strip(): text.strip() for name, _, text in pairs}
    try:
        return msgspec.convert(value, hint, strict=not given.is_text)
    except msgspec.ValidationError as error:
        got = "nothing" if given.value is None else repr(given.value)
        if _is_secret(cls, given.key):
            got = "something else"
        raise ConfigError(
            f"{given.source}: {given.key} must be {_describe(hint)}, got {got}"
        ) from error


def _groups(group: type[Any], given: _Given) -> list[dict[str, Any]]:
    """A list of groups of settings, each checked as if it stood alone."""
    items = given.value
    if given.is_text:
        try:
            items = yaml.safe_load(items)
        except yaml.YAMLError:
            items = None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        keys = ", ".join(_hints(group))
        raise ConfigError(
            f"{given.source}: {given.key} must be a list, each item with some of {keys}"
        )
    checked = []
    for i, item in enumerate(items):
        source = f"{given.source}, {given.key}[{i}]"
        inner = [_Given(source, key, value) for key, value in _flatten(item, _hints(group))]
        checked.append(_nest({one.key: _value(group, one) for one in inner}))
    return checked


def _hints(cls: type[Any]) -> dict[str, Any]:
    """Dotted key and type of every field that is not itself a group of fields."""
    return {leaf.key: leaf.hint for leaf in leaves(cls)}


def _is_secret(cls: type[Any], key: str) -> bool:
    return any(leaf.setting.secret for leaf in leaves(cls) if leaf.key == key)


def _unknown(key: str, known: list[str]) -> str:
    group = [other for other in known if other.startswith(f"{key}.")]
    if group:
        return f"{key} is a group of settings; set one of {', '.join(group)}"
    name = key.rsplit(".", 1)[-1]
    namesakes = [other for other in known if other.rsplit(".", 1)[-1] == name]
    nearest = namesakes or difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(known)}"
    return f"there is no setting {key}; {hint}"


def _group_in_list(hint: Any) -> type[Any] | None:
    """The dataclass in ``tuple[dataclass, ...]``."""
    if get_origin(hint) is tuple and dataclasses.is_dataclass(item := get_args(hint)[0]):
        return cast(type[Any], item)
    return None


def _may_be(kind: type, hint: Any) -> bool:
    return any(get_origin(option) is kind for option in (hint, *get_args(hint)))


def _describe(hint: Any) -> str:
    """A type in words."""
    if get_origin(hint) is Literal:
        return " or ".join(get_args(hint))
    if get_origin(hint) is tuple:
        return f"a list ({_describe(get_args(hint)[0])} each)"
    if get_origin(hint) is dict:
        return f"a table of names ({_describe(get_args(hint)[1])} each)"
    if hint in _NAMES:
        return _NAMES[hint]
    # What is left is ``X | None``.
    return " or ".join("null" if t is type(None) else _describe(t) for t in get_args(hint))
