"""BERT and its relatives: states of the reference, of the engine and of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

import gossamer
from family_checks import near, read, tokens
from gossamer import GossamerError
from gossamer.checkpoints import open_checkpoint
from gossamer.pruning import prune
from reference_model import ReferenceModel
from tiny import save_tokenizer

BERT = {
    "vocab_size": 320,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 96,
}
ODD = {
    **BERT,
    "hidden_size": 42,
    "num_attention_heads": 1,
    "intermediate_size": 50,
    "hidden_act": "gelu_new",
    "layer_norm_eps": 1e-3,
    "type_vocab_size": 1,
}
DISTILBERT = {
    "vocab_size": 320,
    "dim": 48,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 64,
    "max_position_embeddings": 96,
}
MODERN = {**BERT, "num_hidden_layers": 4, "local_attention": 24, "pad_token_id": 1}
CASES: dict[str, dict[str, Any]] = {
    "bert": {"model_type": "bert", **BERT},
    "bert odd": {"model_type": "bert", **ODD},
    "roberta": {"model_type": "roberta", **BERT, "pad_token_id": 1},
    "roberta odd": {"model_type": "roberta", **ODD, "pad_token_id": 4},
    "xlm-roberta": {"model_type": "xlm-roberta", **BERT},
    "xlm-roberta odd": {"model_type": "xlm-roberta", **ODD, "pad_token_id": 0},
    "distilbert": {"model_type": "distilbert", **DISTILBERT},
    "distilbert odd": {
        "model_type": "distilbert",
        **DISTILBERT,
        "dim": 42,
        "n_heads": 1,
        "activation": "relu",
        "sinusoidal_pos_embds": True,
    },
    "modernbert": {"model_type": "modernbert", **MODERN},
    "modernbert odd": {
        "model_type": "modernbert",
        **MODERN,
        "num_attention_heads": 1,
        "attention_bias": True,
        "mlp_bias": True,
        "norm_bias": True,
        "hidden_activation": "silu",
        "local_attention": 10,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    },
    "mpnet": {"model_type": "mpnet", **BERT},
    "mpnet odd": {"model_type": "mpnet", **{k: v for k, v in ODD.items() if k != "type_vocab_size"}},
}


def made(folder: Path, case: str, headed: bool = False) -> Path:
    """A seeded encoder of transformers, all parameters moved, perhaps with what guesses masked words."""
    torch.manual_seed(0)
    config = dict(CASES[case])
    settings = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    kind = transformers.AutoModelForMaskedLM if headed else transformers.AutoModel
    model = kind.from_config(settings)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def inputs(length: int) -> Any:
    return np.maximum(tokens(length), 5)  # padding tokens have positions of their own in transformers


def theirs(folder: Path, ids: Any) -> Any:
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").double().eval()
    with torch.no_grad():
        return model(torch.from_numpy(ids)[None]).last_hidden_state[0].numpy()


@pytest.mark.parametrize("case", CASES)
def test_states_are_theirs(case: str, tmp_path: Path) -> None:
    folder = made(tmp_path / "model", case)
    described, values = read(folder)
    assert {name: value.shape for name, value in values.items()} == described.tensors
    short, long = inputs(9), inputs(80)
    expected = [theirs(folder, ids) for ids in (short, long)]
    reference = ReferenceModel(described, values)
    for ids, states in zip((short, long), expected, strict=True):
        near(reference.encode(ids), states)
    model = gossamer.load(folder, activations="f32")
    near(model.decoder.encode([short, long]), np.concatenate(expected), 5e-5)


def test_what_tensorflow_wrote_of_the_pooler_is_known(tmp_path: Path) -> None:
    folder = made(tmp_path / "model", "bert")
    config = json.loads((folder / "config.json").read_text())
    pooler = {"pooler_num_attention_heads": 12, "pooler_num_fc_layers": 3, "pooler_size_per_head": 128}
    more = {"directionality": "bidi", "pooler_fc_size": 768, "pooler_type": "first_token_transform"}
    (folder / "config.json").write_text(json.dumps({**config, **pooler, **more}))
    ids = inputs(20)
    near(gossamer.load(folder, activations="f32").decoder.encode([ids]), theirs(folder, ids), 5e-5)


@pytest.mark.parametrize("case", ["bert", "roberta", "xlm-roberta", "distilbert", "mpnet", "modernbert"])
def test_what_they_were_trained_with_is_told(case: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(made(tmp_path / "model", case, headed=True))
    (note,) = [note for note in checkpoint.notes if "states are what an encoder gives" in note]
    assert "without" in note
    ids = inputs(20)
    model = gossamer.load(tmp_path / "model", activations="f32")
    near(model.decoder.encode([ids]), theirs(tmp_path / "model", ids), 5e-5)


@pytest.mark.parametrize("case", ["bert", "distilbert odd", "mpnet", "modernbert odd"])
def test_pruned_go_back(case: str, tmp_path: Path) -> None:
    folder = made(tmp_path / "model", case)
    prune(folder, tmp_path / "pruned", method="magnitude", sparsity=0.5)
    described, values = read(tmp_path / "pruned")
    assert all(0.48 < (values[name] == 0).mean() < 0.52 for name in described.linears)
    ids = inputs(30)
    expected = theirs(tmp_path / "pruned", ids)
    gossamer.convert(tmp_path / "pruned", tmp_path / "packed", weights="f32")
    near(gossamer.load(tmp_path / "packed", activations="f32").decoder.encode([ids]), expected, 5e-5)


def test_pruned_by_what_linears_read(tmp_path: Path) -> None:
    folder = made(tmp_path / "model", "bert")
    text = tmp_path / "text.txt"
    text.write_text("The spider spins a thread of gossamer. " * 60)
    options: dict[str, Any] = {"method": "sparsegpt", "calibration": text, "windows": 8, "length": 32}
    report = prune(folder, tmp_path / "pruned", sparsity=0.5, **options)
    assert report.allocation == "uniform"
    assert abs(report.reached - 0.5) < 0.01
    prune(folder, tmp_path / "magnitude", method="magnitude", sparsity=0.5)
    ids = np.array(open_checkpoint(folder).tokenizer().encode("The thread of the spider holds.")[:32])
    dense, *others = (theirs(path, ids) for path in (folder, tmp_path / "pruned", tmp_path / "magnitude"))
    lost = [np.square(states - dense).sum() for states in others]
    assert lost[0] < 0.7 * lost[1]
    for change, what in (
        ({"allocation": "divergence"}, "allocation divergence"),
        ({"calibration": None}, "a calibration"),
    ):
        with pytest.raises(GossamerError, match=what):
            prune(folder, tmp_path / "other", sparsity=0.5, **{**options, **change})


@pytest.mark.parametrize(
    ("case", "change", "what"),
    [
        ("bert", {"is_decoder": True}, "is_decoder"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ("bert", {"num_attention_heads": 5}, "hidden_size 48 is not a multiple"),
        ("bert", {"hidden_act": "mish"}, "hidden_act 'mish'"),
        ("roberta", {"pad_token_id": 400}, "pad_token_id must be a token, got 400"),
        ("roberta", {"max_position_embeddings": 2}, "max_position_embeddings 2 leaves no position"),
        ("mpnet", {"relative_attention_num_buckets": 16}, "relative_attention_num_buckets 16"),
        ("distilbert", {"window": 8}, "window is not supported"),
        ("modernbert", {"position_embedding_type": "relative"}, "position_embedding_type 'relative'"),
    ],
)
def test_what_is_not_done_is_named(case: str, change: dict[str, Any], what: str, tmp_path: Path) -> None:
    folder = made(tmp_path / "model", case)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(GossamerError, match=what):
        open_checkpoint(folder)


def test_norms_have_the_names_of_the_first_checkpoints(tmp_path: Path) -> None:
    path = made(tmp_path / "model", "bert") / "model.safetensors"
    described, values = read(path.parent)
    stored = load_file(path)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for now, then in old.items():
        stored = {name.replace(now, then): values for name, values in stored.items()}
    save_file(stored, path, {"format": "pt"})
    _, again = read(path.parent)
    assert list(again) == list(described.tensors)
    for name, value in values.items():
        np.testing.assert_array_equal(again[name], value)
    prune(path.parent, tmp_path / "pruned", method="magnitude", sparsity=0.5)
    ids = inputs(20)
    near(ReferenceModel(*read(tmp_path / "pruned")).encode(ids), theirs(tmp_path / "pruned", ids))


def test_a_tensor_without_a_place(tmp_path: Path) -> None:
    path = made(tmp_path / "model", "bert") / "model.safetensors"
    tensors = load_file(path)
    tensors["encoder.layer.0.attention.self.distance_embedding.weight"] = np.ones((9, 12), np.float32)
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(GossamerError, match="distance_embedding"):
        open_checkpoint(path.parent)
