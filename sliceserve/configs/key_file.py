"""Keys and tenants in a file of their own, which may change while a server runs."""

import logging
import stat
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from sliceserve.configs.loading import ConfigError, load_config
from sliceserve.configs.serving import HttpConfig
from sliceserve.configs.tenants import Keyring

logger = logging.getLogger(__name__)

Config = TypeVar("Config", bound=HttpConfig)


def with_key_file(config: Config) -> Config:
    """``config``, and in it the keys and tenants of its ``api_keys_file``, as it stands now.
    Raises ConfigError, which shows no key."""
    if config.api_keys_file is None:
        return config
    path = Path(config.api_keys_file).expanduser()
    read = load_config(Keyring, path, env={})
    _warn_if_readable_by_all(path)
    try:
        keyring = config.keyring + read
        return replace(config, api_keys=keyring.api_keys, tenants=keyring.tenants)
    except ValueError as error:
        raise ConfigError(f"{path}, with the other settings: {error}") from error


def _warn_if_readable_by_all(path: Path) -> None:
    if path.stat().st_mode & stat.S_IROTH:
        logger.warning("every user of this machine can read %s; chmod 600 it", path)
