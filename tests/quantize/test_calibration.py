"""What calibrates, and that ModelOpt saw what the experts saw."""

import json
import os
import sys

import pytest
import torch
from modules import load

from diffusiongemma_vllm.cli.main import MINIATURE
from diffusiongemma_vllm.quantize import calibration, source
from diffusiongemma_vllm.quantize.experts import InputScales, rounded


def lines(tmp_path, *texts):
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(texts))
    return str(path)


def test_texts_and_chats(tmp_path):
    chat = [{"role": "user", "content": "hi"}]
    path = lines(tmp_path, '{"text": "one"}', "", json.dumps({"messages": chat}), '{"text": "3"}')
    assert calibration.texts(path, 2) == ["one", chat]


@pytest.mark.parametrize("line", [
    '{"other": 1}', "[1]", "{", '{"text": 5}', '{"text": ""}', '{"messages": ["x"]}',
    '{"messages": [{"content": "x"}]}',
])
def test_a_wrong_line_is_named(tmp_path, line):
    path = lines(tmp_path, '{"text": "one"}', line)
    with pytest.raises(ValueError, match="line 2: every line must be a JSON object"):
        calibration.texts(path, 5)


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no line"):
        calibration.texts(lines(tmp_path, ""), 5)


def test_a_file_that_is_not_utf_8_is_named(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"text": "é"}'.encode("latin-1"))
    with pytest.raises(ValueError, match="latin.jsonl is not UTF-8"):
        calibration.texts(str(path), 5)


def test_messages_that_the_template_does_not_take_are_shown():
    encode = calibration.encoder(MINIATURE)
    assert encode([{"role": "user", "content": "hi"}])
    with pytest.raises(ValueError, match="template does not take the messages .*'role': 1"):
        encode([{"role": 1, "content": "hi"}])


def test_data_sets_out_of_reach_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="cnn_dailymail cannot be had .* pass a .jsonl file"):
        calibration.texts("datasets", 8)


def test_data_sets_are_shared_evenly(monkeypatch):
    from modelopt.torch.utils import dataset_utils

    monkeypatch.setattr(dataset_utils, "get_dataset_samples", lambda name, count: [name] * count)
    assert calibration.texts("datasets", 3) == [
        name for name in calibration.DATASETS for _ in range(2)
    ]


def test_it_is_done_again_where_a_file_has_changed(copy, tmp_path, monkeypatch):
    from diffusiongemma_vllm.cli import quantize

    texts = lines(tmp_path, '{"text": "one"}')
    options = quantize.Options(str(copy), tmp_path, texts, 4, "cpu")
    done = []
    monkeypatch.setattr(calibration, "encoder", lambda folder: len)
    monkeypatch.setattr(calibration, "calibrate", lambda *_: {"made": float(done.append(1) or 1)})
    for change in (None, texts, copy / "model.safetensors"):
        if change:
            os.utime(change, ns=(0, len(done)))
        for _ in range(2):
            assert quantize._amax(source.read(copy), options) == {"made": 1.0}
    assert len(done) == 3


def test_a_checkpoint_without_a_tokenizer_is_refused(checkpoint):
    with pytest.raises(ValueError, match=r"holds no tokenizer.json: download .*it\)$"):
        calibration.encoder(checkpoint)


@pytest.fixture(scope="module")
def amax(checkpoint):
    return calibration.calibrate(checkpoint, [[3, 5, 7], [11, 12]], "cpu")


def test_every_layer_is_calibrated(amax):
    assert len(amax) == 2 * 3 and all(0 < value < 1e3 for value in amax.values())


def test_the_largest_activation_is_the_experts_input(checkpoint, amax):
    """The experts' input is a norm's output: its weights bound what a row can reach."""
    model = load(checkpoint)
    for index, layer in enumerate(model.model.layers):
        norm = layer.pre_feedforward_layernorm_2.weight
        found = amax[f"model.decoder.layers.{index}.experts.gate_up_proj"]
        assert 1 < found < float(norm.detach().max()) * len(norm) ** 0.5


def test_one_scale_a_layer_and_projection():
    name = "model.decoder.layers.0.experts.gate_up_proj"
    inputs = InputScales({name: 2688.0})
    found = dict(rounded(name, torch.randn(2, 32, 16), inputs))
    scales = {k: v for k, v in found.items() if k.endswith("input_scale")}
    assert len(scales) == 4 and all(v == 1 and v.shape == () for v in scales.values())
