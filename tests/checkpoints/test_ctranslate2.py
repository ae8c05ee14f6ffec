"""Folders of CTranslate2: the tensors and the config of the Whisper that they were made from; broken ones in a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer
from ctranslate2_files import CONTEXT, FRAMES, INNER, MELS, SCALARS, VOCAB, WIDTH, model_bin, save, stored, variables
from ctranslate2_files import whisper_tensors as tensors
from gossamer.checkpoints.ctranslate2 import CTranslate2Checkpoint, is_ctranslate2
from gossamer.errors import GossamerError
from tiny import save_tokenizer

safetensors = pytest.importorskip("safetensors.numpy", reason="writes the other folder")

KINDS = ("float32", "float16", "bfloat16", "int8", "int8_float16", "int16")


def written(folder: Path, kind: str = "float32", **changes: Any) -> Path:
    return save(folder, model_bin(stored(variables(tensors()), kind), **changes))


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_are_those_that_were_converted(tmp_path: Path, kind: str) -> None:
    found = CTranslate2Checkpoint(written(tmp_path / "m", kind))
    expected = tensors()
    assert sorted(found.names()) == sorted(expected)
    for name, values in expected.items():
        error = np.abs(found.tensor(name) - values).max()
        assert found.shape(name) == values.shape
        beside = [other for other in expected if other.rpartition(".")[0][:-7] == name.rpartition(".")[0][:-7]]
        largest = max(np.abs(expected[other]).max() for other in (beside if kind == "int16" else [name]))
        # Half a step of the numbers, of bfloat16 a whole one, since the writer cuts; a scale is rounded, and its
        # inverse. That of int16 is one for q, k and v together.
        inverse = 2 * np.finfo(np.float32).eps
        step = {"float32": 0.0, "float16": 2**-11, "bfloat16": 2**-7, "int16": 0.5 / 1024 + inverse}.get(
            kind, 0.5 / 127 + inverse
        )
        assert error <= largest * step


@pytest.mark.parametrize("kind", ["int8", "int8_float16"])
def test_int8_stays_what_it_is(tmp_path: Path, kind: str) -> None:
    found = CTranslate2Checkpoint(written(tmp_path / "m", kind))
    codes = found.codes("model.decoder.layers.0.self_attn.v_proj.weight")
    own = stored(variables(tensors()), kind)["decoder/layer_0/self_attention/linear_0/weight"][1]
    assert codes is not None
    np.testing.assert_array_equal(codes.codes, own[2 * WIDTH :])
    assert found.codes("model.decoder.layer_norm.weight") is None


def test_config_is_that_of_the_sizes(tmp_path: Path) -> None:
    found = CTranslate2Checkpoint(written(tmp_path / "m"))
    assert found.config == {
        "model_type": "whisper",
        "activation_function": "gelu",
        "scale_embedding": False,
        "tie_word_embeddings": True,
        "vocab_size": VOCAB,
        "d_model": WIDTH,
        "num_mel_bins": MELS,
        "max_source_positions": FRAMES,
        "max_target_positions": CONTEXT,
        **{f"{side}_layers": 1 for side in ("encoder", "decoder")},
        **{f"{side}_ffn_dim": INNER for side in ("encoder", "decoder")},
        **{f"{side}_attention_heads": 2 for side in ("encoder", "decoder")},
    }


def test_what_it_says_of_decoding_goes_along(tmp_path: Path) -> None:
    found = CTranslate2Checkpoint(written(tmp_path / "m"))
    said = {"alignment_heads": [[0, 1]], "suppress_tokens": [1, 2]}
    assert found.tokenizer().generation == said
    (tmp_path / "out").mkdir()
    found.copy_companions(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == said
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_a_folder_is_told_from_others(tmp_path: Path) -> None:
    folder = written(tmp_path / "m")
    assert is_ctranslate2(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')  # model.bin may be anybody's
    assert not is_ctranslate2(folder)


def test_tensors_may_have_many_names(tmp_path: Path) -> None:
    """A converter stores equal tensors once."""
    found, aliases = stored(variables(tensors()), "float32"), {"decoder/projection/weight": "decoder/embeddings/weight"}
    found["decoder/layer_norm/beta"] = found["encoder/layer_norm/beta"]
    del found["encoder/layer_norm/beta"]
    aliases["encoder/layer_norm/beta"] = "decoder/layer_norm/beta"
    opened = CTranslate2Checkpoint(save(tmp_path / "m", model_bin(found, aliases=aliases)))
    one, other = (opened.tensor(f"model.{side}.layer_norm.bias") for side in ("encoder", "decoder"))
    np.testing.assert_array_equal(one, other)


def broken(what: str) -> dict[str, Any]:
    found = stored(variables(tensors()), "int8")
    key = "decoder/layer_0/self_attention/linear_0"
    if what == "bias of keys":
        found[f"{key}/bias"][1][WIDTH] = 1
    if what == "scale missing":
        del found[f"{key}/weight_scale"]
    if what == "scale of zero":
        found[f"{key}/weight_scale"][1][3] = 0
    if what == "tensor missing":
        del found["decoder/layer_norm/beta"]
    if what == "tensor more":
        found["decoder/layer_0/extra/weight"] = found["encoder/layer_norm/beta"]
    changes: dict[str, Any] = {"made": found}
    if what == "other activation":
        changes["scalars"] = {**SCALARS, "decoder/activation": (1, b"\0")}
    if what == "unknown scalar":
        changes["scalars"] = {**SCALARS, "decoder/rotary_dim": (2, b"\1\0")}
    if what == "other head":
        found["decoder/projection/weight"] = (0, tensors(1)["model.decoder.embed_tokens.weight"])
        changes["aliases"] = {}
    if what == "other spec":
        changes["spec"] = "TransformerSpec"
    if what == "version":
        changes["version"] = 99
    return changes


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("bias of keys", "self_attention/linear_0/bias has a bias of keys"),
        ("scale missing", "linear_0/weight_scale is missing"),
        ("scale of zero", "not as many finite numbers above 0"),
        ("tensor missing", "decoder/layer_norm/beta is missing"),
        ("tensor more", "extra/weight has no place"),
        ("other activation", "decoder/activation is 0"),
        ("unknown scalar", "decoder/rotary_dim is not known"),
        ("other head", "decoder/projection/weight has no place"),
        ("other spec", "TransformerSpec of CTranslate2 is not read"),
        ("version", "99"),
    ],
)
def test_what_is_no_whisper_is_one_line(tmp_path: Path, what: str, line: str) -> None:
    folder = save(tmp_path / "m", model_bin(**broken(what)))
    with pytest.raises(GossamerError, match=line) as error:
        CTranslate2Checkpoint(folder)
    assert str(folder / "model.bin") in str(error.value)


def test_unknown_keys_are_one_line(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", model_bin(stored(variables(tensors()), "float32")), decoder_start_token="<s>")
    with pytest.raises(GossamerError, match="decoder_start_token is not known"):
        CTranslate2Checkpoint(folder)


def test_a_file_that_ends_early_is_one_line(tmp_path: Path) -> None:
    data = model_bin(stored(variables(tensors()), "float16"))
    folder = save(tmp_path / "m", data)
    cuts = [*range(0, 400, 7), *np.random.default_rng(0).integers(400, len(data), 60)]
    for cut in cuts:
        (folder / "model.bin").write_bytes(data[: int(cut)])
        with pytest.raises(GossamerError):
            CTranslate2Checkpoint(folder)
    (folder / "model.bin").write_bytes(data + b"more")
    with pytest.raises(GossamerError, match="4 bytes follow"):
        CTranslate2Checkpoint(folder)


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_it_runs_as_the_folder_of_transformers_does(tmp_path: Path, kind: str) -> None:
    folder = written(tmp_path / "m", kind)
    source = CTranslate2Checkpoint(folder)
    plain = {name: np.ascontiguousarray(source.tensor(name)) for name in source.names()}
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "config.json").write_text(json.dumps(source.config))
    safetensors.save_file(plain, tmp_path / "plain" / "model.safetensors")
    save_tokenizer(tmp_path / "plain")
    frames = np.random.default_rng(0).normal(0, 1, (2 * FRAMES, MELS)).astype(np.float32)
    ours, theirs = (
        gossamer.load(path, activations="f32").logits([3, 5, 9], reads=frames) for path in (folder, tmp_path / "plain")
    )
    # int8 values stay whole numbers; their scales are rounded to float16, each by half a unit of its 11 bits.
    within = 1e-6 if kind == "float32" else 2**-9
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=within * np.abs(theirs).max())
