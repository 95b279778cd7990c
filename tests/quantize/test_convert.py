"""The result's names, numbers and config; going on after an interruption; what is refused."""

import json
import shutil
from unittest.mock import Mock

import header
import pytest
import torch
from modules import edit_json, edit_tensors, engine_config
from safetensors import SafetensorError
from safetensors.torch import load_file

from diffusiongemma_kernels.formats.nvfp4 import NVFP4, dequantize, quantize
from diffusiongemma_vllm import quantisation
from diffusiongemma_vllm.cli.main import MINIATURE
from diffusiongemma_vllm.nvfp4 import NAME

FUSED = "model.decoder.layers.1.experts"


def run(*args):
    from diffusiongemma_vllm.cli.main import main

    return main(["quantize", *map(str, args), "--calibration", "none"])


def tensors(folder):
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def test_everything_but_experts_is_kept(split, result):
    old, new = tensors(split), tensors(result)
    for name, tensor in old.items():
        if ".experts." not in name:
            assert torch.equal(new.pop(name), tensor), name
    assert all(".experts." in name for name in new)
    layers, experts, projections, leaves = 3, 8, 3, 3
    assert len(new) == layers * experts * projections * leaves


def test_names_are_nvidias(result):
    """But for the input scales, which a calibration gives."""
    def leaves(names):
        return {name.split(".experts.5.")[1] for name in names if "layers.1.experts.5." in name}

    theirs = {name for name in leaves(header.nvfp4_tensors()) if "input" not in name}
    assert leaves(tensors(result)) == theirs


def test_numbers_are_the_formats(split, result):
    """Gate and up of one expert share the larger of their global scales."""
    old, new = tensors(split), tensors(result)
    fused = old[f"{FUSED}.gate_up_proj"][5]
    shared = fused.abs().max() / 2688
    for projection, part in zip(("gate_proj", "up_proj"), fused.chunk(2), strict=True):
        want = quantize(part, shared)
        got = NVFP4(*(
            new[f"{FUSED}.5.{projection}.{leaf}"]
            for leaf in ("weight", "weight_scale", "weight_scale_2")
        ))
        assert torch.equal(got.codes, want.codes) and torch.equal(got.global_scale, shared)
        assert torch.equal(got.scales.float(), want.scales.float())
        assert (dequantize(got) - part).norm() / part.norm() < 0.12


def test_the_index_names_every_tensor(result):
    index = json.loads((result / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tensors(result))
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in tensors(result).values())


def test_both_configs_say_what_it_is(result):
    config = json.loads((result / "config.json").read_text())["quantization_config"]
    other = json.loads((result / "hf_quant_config.json").read_text())
    assert quantisation.read(config) == quantisation.read(other)
    assert quantisation.read(config).nvfp4_experts
    calibrated = {"config_groups", "quant_algo"}  # this one is weights only
    for name in set(header.QUANTIZATION) - calibrated - {"producer"}:
        assert config[name] == header.QUANTIZATION[name], name
    assert (result / "generation_config.json").is_file()


def test_stock_vllm_reads_the_config_as_its_own(result):
    """With our plugin's choice taken away, vLLM's ModelOpt method parses it."""
    from vllm.model_executor.layers.quantization.modelopt import ModelOptNvFp4Config

    config = json.loads((result / "config.json").read_text())["quantization_config"]
    theirs = ModelOptNvFp4Config.from_config(config)
    assert theirs.group_size == 16 and theirs.is_checkpoint_nvfp4_serialized
    assert engine_config(result, dtype="bfloat16").model_config.quantization == NAME


@pytest.fixture
def half(split, tmp_path):
    """A run that ended before its second file."""
    folder = tmp_path / "dst"
    assert run(split, folder) == 0
    (folder / "config.json").unlink()
    files = sorted(folder.glob("*.safetensors"))
    files[1].unlink()
    return folder, files


def test_an_interrupted_run_goes_on(split, half, result):
    folder, files = half
    kept = files[0].stat().st_mtime_ns
    assert run(split, folder) == 0
    assert files[0].stat().st_mtime_ns == kept and files[1].is_file()
    got, want = tensors(folder), tensors(result)
    assert got.keys() == want.keys()
    assert all(torch.equal(got[n].view(torch.uint8), want[n].view(torch.uint8)) for n in got
               if got[n].dim())


def test_a_file_of_other_weights_is_written_again(split, half):
    folder, files = half
    shutil.copyfile(files[0], files[1])
    assert run(split, folder) == 0


def test_a_second_run_that_is_interrupted_leaves_nothing_that_opens(split, half, monkeypatch):
    """Where DST held a result of other weights, it must not be a mixture that serves."""
    from diffusiongemma_vllm.quantize import convert

    folder, files = half
    assert run(split, folder) == 0
    shutil.copyfile(files[0], files[1])
    with monkeypatch.context() as patch:
        patch.setattr(convert, "save_file", Mock(side_effect=KeyboardInterrupt))
        assert run(split, folder) == 130
    assert not (folder / "config.json").exists()
    assert run(split, folder) == 0 and (folder / "config.json").is_file()


def test_a_damaged_result_is_found(split, result, tmp_path):
    from diffusiongemma_vllm.quantize import source, verify

    folder = shutil.copytree(result, tmp_path / "dst")
    name = f"{FUSED}.3.down_proj.weight"
    where = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][name]
    one = tmp_path / "one"
    one.mkdir()
    shutil.copyfile(folder / where, one / "model.safetensors")
    edit_tensors(one, lambda tensors: tensors[name].bitwise_xor_(0x77))
    shutil.copyfile(one / "model.safetensors", folder / where)
    with pytest.raises(ValueError, match="down_proj is off by .* of its norm; delete the folder"):
        verify.verify(source.read(split), folder)


def drop_experts(folder):
    edit_tensors(folder, lambda tensors: tensors.pop(f"{FUSED}.down_proj"))


def spoil(folder):
    edit_tensors(folder, lambda tensors: tensors[f"{FUSED}.down_proj"].view(-1)[7:8].fill_(
        float("nan")
    ))


def cut(folder):
    edit_tensors(folder, lambda tensors: tensors.update(
        {f"{FUSED}.down_proj": tensors[f"{FUSED}.down_proj"][:-1].contiguous()}
    ))


BAD = {
    "quantised already": (
        lambda f: edit_json(f / "config.json", quantization_config={"quant_method": "fp8"}),
        "quantised already",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "holds no config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no *.safetensors"),
    "no experts": (drop_experts, f"{FUSED}.down_proj must be [8, 64, 32]"),
    "an expert short": (cut, f"{FUSED}.down_proj must be [8, 64, 32] in BF16, F16 or F32, found"),
    "NaN": (spoil, f"{FUSED}.down_proj holds NaN or infinity"),
    "another width": (
        lambda f: edit_json(f / "config.json", text_config__moe_intermediate_size=24),
        "multiples of 16, found 64 and 24",
    ),
}


@pytest.mark.parametrize(("damage", "says"), BAD.values(), ids=BAD)
def test_a_source_that_cannot_be_quantised(copy, tmp_path, capsys, damage, says):
    damage(copy)
    assert run(copy, tmp_path / "dst") == 1
    assert says in capsys.readouterr().err
    assert not (tmp_path / "dst" / "config.json").exists()


def test_one_file_of_another_name_keeps_its_index(copy, tmp_path):
    """Without one transformers would not open it."""
    name = "model-00001-of-00001.safetensors"
    (copy / "model.safetensors").rename(copy / name)
    index = {"weight_map": dict.fromkeys(tensors(copy), name)}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    made = tmp_path / "dst"
    assert run(copy, made) == 0
    index = json.loads((made / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == dict.fromkeys(tensors(made), name)


@pytest.mark.parametrize("writer", ["save_file", "to_json"])
def test_a_full_disk_is_a_sentence(copy, tmp_path, capsys, monkeypatch, writer):
    from diffusiongemma_vllm.quantize import convert

    full = {"save_file": SafetensorError, "to_json": OSError}[writer]("No space left on device")
    monkeypatch.setattr(convert, writer, Mock(side_effect=full))
    assert run(copy, tmp_path / "dst") == 1
    assert "dst cannot be written (No space left on device)" in capsys.readouterr().err


def test_a_result_that_is_no_folder(copy, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "dst", tmp_path / ("x" * 300)):
        assert run(copy, folder) == 1
        said = capsys.readouterr().err
        assert f"DST {folder} is no folder and cannot be made one (" in said


def test_options_that_cannot_be_kept(copy, tmp_path, capsys):
    from diffusiongemma_vllm.cli.main import main

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "strange.safetensors").write_bytes(b"")
    shutil.copy(MINIATURE / "tokenizer.json", copy)
    for args, says in {
        (copy, copy): "is SRC itself",
        (copy, tmp_path / "full"): "holds strange.safetensors",
        (copy, tmp_path / "x", "--samples", "0"): "--samples must be 1 or more",
        (copy, tmp_path / "x", "--device", "cuda:7"): "--device cuda:7 cannot be used",
        (tmp_path / "nothing", tmp_path / "x"): "is no folder",
        (copy, tmp_path / "x", "--calibration", "gone.jsonl"): "gone.jsonl is no file",
    }.items():
        assert main(["quantize", *map(str, args)]) == 1, args
        assert says in capsys.readouterr().err
