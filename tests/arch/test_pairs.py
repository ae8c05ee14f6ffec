"""Families with an encoder and a decoder: what each of them has to do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

pytest.importorskip("torch", reason="transformers' models are the oracle here")
pytest.importorskip("transformers", reason="the oracle")
import transformers

import gossamer
from family_checks import VOCAB, Config, near, read
from gossamer import arch
from gossamer.checkpoints import open_checkpoint, write_checkpoint
from gossamer.errors import GossamerError
from pair_checks import (
    check_pair,
    check_pair_beams,
    check_pair_pruned_go_back,
    check_pair_pruned_packed_and_run,
    check_pair_runs,
    check_pair_writes,
    made_pair,
    pair,
)
from reference_model import ReferenceModel

T5: Config = {
    "model_type": "t5", "vocab_size": 320, "d_model": 48, "d_kv": 12, "d_ff": 64, "num_layers": 2, "num_heads": 4,
}  # fmt: skip
SIDES: Config = {
    "vocab_size": 320, "d_model": 48, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 90,
}  # fmt: skip
ODD: Config = {
    **SIDES, "encoder_layers": 3, "encoder_attention_heads": 2, "decoder_ffn_dim": 40, "activation_function": "relu",
    "scale_embedding": True,
}  # fmt: skip
CASES: dict[str, Config] = {
    "t5": T5,
    "t5 1.1": {
        **T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_decoder_layers": 3, "d_kv": 10,
        "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20,
    },
    "bart": {"model_type": "bart", **SIDES},
    "bart odd": {"model_type": "bart", **ODD, "forced_bos_token_id": 4},
    "marian": {"model_type": "marian", **SIDES, "activation_function": "swish"},
    "marian odd": {"model_type": "marian", **ODD},
    "m2m_100": {"model_type": "m2m_100", **SIDES},
    "m2m_100 odd": {"model_type": "m2m_100", **ODD, "scale_embedding": False, "forced_bos_token_id": 7},
    "mt5": {**T5, "model_type": "mt5"},
    "mt5 odd": {**T5, "model_type": "mt5", "feed_forward_proj": "gated-silu", "num_heads": 3},
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_pair(tmp_path_factory.mktemp("pair") / "model", CASES[request.param])


def test_description(folder: Path) -> None:
    check_pair(folder)


def test_engine(folder: Path) -> None:
    check_pair_runs(folder)


def test_writes(folder: Path) -> None:
    check_pair_writes(folder)


def test_writes_with_beams(folder: Path) -> None:
    check_pair_beams(folder)


def test_pruned_go_back(folder: Path, tmp_path: Path) -> None:
    check_pair_pruned_go_back(folder, tmp_path)


def test_pruned_packed_and_run(folder: Path, tmp_path: Path) -> None:
    check_pair_pruned_packed_and_run(folder, tmp_path)


def test_another_filter_of_times_is_told() -> None:
    config = transformers.WhisperConfig().to_dict()
    assert config["median_filter_width"] == 7
    assert arch.family(config).unread(config) == []
    assert arch.family(config).unread({**config, "median_filter_width": 9}) == ["median_filter_width"]


def test_an_encoder_alone(tmp_path: Path) -> None:
    folder = made_pair(tmp_path / "model", T5, encoder=True)
    source, _ = pair()
    model = transformers.T5EncoderModel.from_pretrained(folder).eval()
    import torch

    with torch.no_grad():
        expected = model(torch.from_numpy(source)[None]).last_hidden_state[0].numpy()
    ours = gossamer.load(folder, activations="f32")
    near(ours.decoder.encode([source]), expected, 5e-5)  # type: ignore[attr-defined]
    with pytest.raises(GossamerError, match="is an encoder: it has no head"):
        ours.generate("a")
    with pytest.raises(GossamerError, match="is an encoder"):
        ours.logits(np.array([1, 2]))


@pytest.mark.parametrize("kind", ["t5", "mt5"])
@pytest.mark.parametrize("tied", [None, True, False])
@pytest.mark.parametrize("scaled", [None, False])
@pytest.mark.parametrize("head", ["none", "its own", "the embedding"])
def test_the_head_is_what_the_file_has(
    tmp_path: Path, kind: str, tied: bool | None, scaled: bool | None, head: str
) -> None:
    """Whatever the config ties; what it says of that decides whether states are scaled where no key of its own does."""
    folder = made_pair(tmp_path / "model", {**T5, "model_type": kind})
    config = json.loads((folder / "config.json").read_text())
    config |= {"tie_word_embeddings": tied, "scale_decoder_outputs": scaled}
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    path = folder / "model.safetensors"
    stored = safetensors.numpy.load_file(path)
    own = np.random.default_rng(0).standard_normal((VOCAB, 48)).astype(np.float32)
    if head != "none":
        stored["lm_head.weight"] = own if head == "its own" else stored["shared.weight"]
    safetensors.numpy.save_file(stored, path, {"format": "pt"})
    check_pair(folder)
    checkpoint = open_checkpoint(folder)
    tensors = [(name, checkpoint.tensor(name), "f32") for name in checkpoint.names()]
    write_checkpoint(tmp_path / "again", checkpoint.config, tensors, checkpoint)
    check_pair(tmp_path / "again")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"feed_forward_proj": "double-gelu"}, "feed_forward_proj 'double-gelu' is not supported"),
        ({"feed_forward_proj": "gated-sine"}, "feed_forward_proj 'sine' is not supported"),
        ({"relative_attention_max_distance": 4}, "relative_attention_max_distance 4 does not go with"),
        ({"relative_attention_num_buckets": 30}, "relative_attention_num_buckets 30"),
        ({"encoder_layerdrop_norm": 2}, "encoder_layerdrop_norm is not supported"),
    ],
)
def test_bad_configs(change: Config, words: str) -> None:
    with pytest.raises(GossamerError, match=words):
        arch.family(T5).describe({**T5, **change})


WHISPER: Config = {
    "model_type": "whisper", **{key: value for key, value in SIDES.items() if key != "max_position_embeddings"},
    "num_mel_bins": 20, "max_source_positions": 30, "max_target_positions": 40, "pad_token_id": 1, "bos_token_id": 0,
    "begin_suppress_tokens": None,
}  # fmt: skip


@pytest.mark.parametrize("change", [{}, {"encoder_layers": 1, "decoder_ffn_dim": 40, "num_mel_bins": 33}])
def test_whisper(change: Config, tmp_path: Path) -> None:
    import torch

    folder = made_pair(tmp_path / "model", {**WHISPER, **change})
    bins = {**WHISPER, **change}["num_mel_bins"]
    frames, ids = np.random.default_rng(0).standard_normal((60, bins)).astype(np.float32), pair()[1]
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder).double().eval()
    with torch.no_grad():
        heard = torch.from_numpy(frames.T[None].astype(np.float64))
        found = model(input_features=heard, decoder_input_ids=torch.from_numpy(ids)[None], use_cache=False)
    states, logits = found.encoder_last_hidden_state[0].numpy(), found.logits[0].numpy()
    described, values = read(folder)
    reference = ReferenceModel(described, values)
    near(reference.encode(frames), states)
    near(reference.logits(ids, reference.encode(frames)), logits)
    ours = gossamer.load(folder, activations="f32")
    near(ours.decoder.encode([frames]), states, 5e-5)  # type: ignore[attr-defined]
    near(ours.logits(ids, reads=frames), logits, 5e-5)
    near(ours.decoder.encoder.embed(frames), reference.encoder.embed(frames), 5e-5)  # type: ignore[attr-defined,union-attr]
    with pytest.raises(ValueError, match="frames are one sequence, got sequence_length 30"):
        ours.decoder.encoder.embed(frames, 30)  # type: ignore[attr-defined]
    both = ours.decoder.encode([frames[:31], frames])  # type: ignore[attr-defined]
    np.testing.assert_array_equal(both[16:], ours.decoder.encode([frames]))  # type: ignore[attr-defined]
    for bad, words in ((frames[:, :-1], "frames must be"), (np.zeros((62, bins)), "has 62 frames, beyond the context")):
        with pytest.raises(ValueError, match=words):
            ours.decoder.encode([bad])  # type: ignore[attr-defined]
    gossamer.prune(folder, tmp_path / "pruned", method="magnitude", sparsity=0.5)
    again = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path / "pruned").double().eval()
    with torch.no_grad():
        found = again(input_features=heard, decoder_input_ids=torch.from_numpy(ids)[None], use_cache=False)
    gossamer.convert(tmp_path / "pruned", tmp_path / "packed", weights="f32")
    packed = gossamer.load(tmp_path / "packed", activations="f32")
    near(packed.logits(ids, reads=frames), found.logits[0].numpy(), 5e-5)


def test_what_spells_out_where_positions_begin(tmp_path: Path) -> None:
    config = json.loads((made_pair(tmp_path / "bart", CASES["bart"]) / "config.json").read_text())
    assert arch.family(config).unread({**config, "extra_pos_embeddings": 2}) == arch.family(config).unread(config)
    with pytest.raises(GossamerError, match="extra_pos_embeddings is not supported, got 3"):
        arch.family(config).unread({**config, "extra_pos_embeddings": 3})


def test_padding_in_what_is_read(tmp_path: Path) -> None:
    """Positions of M2M-100 begin behind the padding token's number and leave it out; BART's count all tokens."""
    for name in ("m2m_100", "bart"):
        model = gossamer.load(made_pair(tmp_path / name, CASES[name]))
        padding = model.tokenizer.decode([1], special=True)
        if name == "bart":
            assert isinstance(model.generate(f"a {padding} b", max_new_tokens=2), str)
            continue
        with pytest.raises(GossamerError, match="the prompt holds token 1, the padding token"):
            model.generate(f"a {padding} b", max_new_tokens=2)
