import json

import pytest
import torch
from families import COMMON, FAMILIES, NUM_LAYERS, make_model
from safetensors.torch import load_file, save_file

from sliceserve.models.decoder import Decoder
from sliceserve.models.errors import ModelError
from sliceserve.models.spec import ModelSpec
from sliceserve.models.weights import WeightReader

NUM_TOKENS = 13


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    """(folder, token ids, logits of transformers)"""
    reference = make_model(request.param)
    path = tmp_path_factory.mktemp(request.param)
    reference.save_pretrained(path)
    ids = torch.randint(0, COMMON["vocab_size"], (NUM_TOKENS,))
    with torch.inference_mode():
        return path, ids, reference(ids.unsqueeze(0)).logits[0]


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    error = (got - expected).abs().max() / expected.abs().max()
    assert error < 1e-4, f"relative error {error:.2e}"


def test_one_pass_agrees_with_transformers(model, load, runner):
    path, ids, logits = model
    got = runner([load(path)], NUM_TOKENS).run(ids)
    assert got.dtype == torch.float32
    assert_close(got, logits)


@pytest.mark.parametrize("chunks", [[1] * NUM_TOKENS, [5, 1, 1, 6], [12, 1]])
def test_chunks_agree_with_transformers(model, load, runner, chunks):
    path, ids, logits = model
    run = runner([load(path)], NUM_TOKENS)
    got = torch.cat([run.run(chunk) for chunk in ids.split(chunks)])
    assert_close(got, logits)


@pytest.mark.parametrize("cut", range(1, NUM_LAYERS))
def test_two_decoders_agree_with_transformers(model, load, runner, cut):
    path, ids, logits = model
    head, tail = load(path, 0, cut), load(path, cut)
    got = runner([head, tail], NUM_TOKENS).run(ids)
    assert_close(got, logits)


def test_layers_run_in_place_on_the_first_rows_of_a_larger_stream(model, load, runner):
    path, ids, logits = model
    decoder = load(path)
    with torch.inference_mode():
        stream = torch.full((NUM_TOKENS + 3, COMMON["hidden_size"]), 7.0)
        stream[:NUM_TOKENS] = decoder.embed(ids)
        run = runner([decoder], NUM_TOKENS)
        run.run_layers(stream[:NUM_TOKENS], [(decoder, 0, 1), (decoder, 1, NUM_LAYERS)])
        assert_close(decoder.logits(stream[:NUM_TOKENS]), logits)
    assert (stream[NUM_TOKENS:] == 7.0).all()


def test_no_layers_change_nothing(model, load, runner):
    path, _, _ = model
    decoder = load(path, 1, 2)
    hidden = torch.randn(2, COMMON["hidden_size"])
    before = hidden.clone()
    runner([decoder], 4).run_layers(hidden, [(decoder, 1, 1)])
    assert torch.equal(hidden, before)


def split_by_tensor(path) -> None:
    """Give each tensor a file of its own, with an index."""
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    for name, tensor in tensors.items():
        save_file({name: tensor}, path / f"{name}.safetensors")
    index = {"weight_map": {name: f"{name}.safetensors" for name in tensors}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.fixture
def llama(tmp_path):
    make_model("llama").save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("first, stop", [(0, 1), (1, 2), (1, 3), (0, 3)])
def test_only_the_files_of_the_range_are_read(tmp_path, load, runner, first, stop, tied):
    make_model("llama-tied" if tied else "llama").save_pretrained(tmp_path)
    split_by_tensor(tmp_path)
    wanted = {f"model.layers.{i}." for i in range(first, stop)}
    if first == 0 or (tied and stop == NUM_LAYERS):
        wanted.add("model.embed_tokens.")
    if stop == NUM_LAYERS:
        wanted |= {"model.norm.", "lm_head."}
    for file in tmp_path.glob("*.safetensors"):
        if not file.name.startswith(tuple(wanted)):
            file.write_bytes(b"not to be read")
    decoder = load(tmp_path, first, stop)
    assert (decoder.first, decoder.stop) == (first, stop)


def test_no_tensor_is_read_twice(tmp_path, load, monkeypatch):
    make_model("llama-tied").save_pretrained(tmp_path)
    read = []
    tensor = WeightReader.tensor

    def noting(reader, name, *shape, **part):
        read.append(name)
        return tensor(reader, name, *shape, **part)

    monkeypatch.setattr(WeightReader, "tensor", noting)
    load(tmp_path)
    assert sorted(read) == sorted(load_file(tmp_path / "model.safetensors"))


def low_precision_logits(path, runner, ids, device):
    spec = ModelSpec.load(path)
    decoder = Decoder.load(path, spec, 0, NUM_LAYERS, torch.bfloat16, device)
    return runner([decoder], len(ids), torch.bfloat16, device).run(ids.to(device)).cpu()


def test_bfloat16_agrees_roughly(model, runner):
    path, ids, logits = model
    got = low_precision_logits(path, runner, ids, torch.device("cpu"))
    assert got.dtype == torch.float32
    assert (got - logits).abs().max() < 0.1 * logits.abs().max()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_agrees_roughly(model, runner):
    path, ids, logits = model
    got = low_precision_logits(path, runner, ids, torch.device("cuda"))
    assert (got - logits).abs().max() < 0.1 * logits.abs().max()


def test_a_missing_tensor_is_named(llama, load):
    file = llama / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file)
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight") as error:
        load(llama)
    assert str(llama) in str(error.value)
    load(llama, 2)


def test_a_tensor_of_another_shape_is_named_with_its_file(llama, load):
    file = llama / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.2.self_attn.k_proj.weight"] = torch.zeros(3, 24)
    save_file(tensors, file)
    expected = r"k_proj\.weight in .*model\.safetensors must have shape \(16, 24\), got \(3, 24\)"
    with pytest.raises(ModelError, match=expected):
        load(llama)


def test_a_broken_file_is_named(llama, load):
    (llama / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(ModelError, match=r"cannot read .*model\.safetensors"):
        load(llama)


def test_an_index_that_names_a_missing_file_is_refused(llama, load):
    split_by_tensor(llama)
    (llama / "lm_head.weight.safetensors").unlink()
    with pytest.raises(ModelError, match=r"not there: lm_head\.weight\.safetensors"):
        load(llama, 0, 1)


def test_pickled_weights_are_refused(llama, load):
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no model\.safetensors.*can run code"):
        load(llama)


@pytest.mark.parametrize("first, stop", [(-1, 2), (2, 2), (0, 4)])
def test_a_range_outside_the_model_is_refused(llama, load, first, stop):
    with pytest.raises(ValueError, match="3 layers"):
        load(llama, first, stop)
