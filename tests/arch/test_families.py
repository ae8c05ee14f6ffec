"""Families beside Llama, as tiny seeded models of transformers: the same logits, and weights that go back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer
from gossamer import arch
from gossamer.checkpoints import open_checkpoint
from gossamer.errors import GossamerError
from gossamer.generation.perplexity import perplexity
from gossamer.pruning import prune
from reference_model import ReferenceModel
from tiny import save_tokenizer

torch = pytest.importorskip("torch", reason="transformers' models are the oracle here")
transformers = pytest.importorskip("transformers", reason="the oracle")

GPT2 = {"model_type": "gpt2", "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 320}
NEOX = {
    "model_type": "gpt_neox", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 100, "vocab_size": 320, "max_position_embeddings": 64,
}  # fmt: skip
HALF = {"rope_theta": 500.0, "partial_rotary_factor": 0.5, "rope_type": "default"}
CASES: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "gpt2 untied": {**GPT2, "tie_word_embeddings": False, "n_inner": 100, "activation_function": "gelu"},
    "gpt_neox": NEOX,
    "gpt_neox tied": {**NEOX, "tie_word_embeddings": True, "hidden_act": "gelu_new", "rope_parameters": HALF},
    "gpt_neox in turn": {**NEOX, "use_parallel_residual": False, "attention_bias": False},
}
Made = Callable[..., Path]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    def make(case: str, name: str = "model", *, base: bool = False) -> Path:
        folder = tmp_path / name
        torch.manual_seed(0)
        values = dict(CASES[case])
        config = transformers.AutoConfig.for_model(values.pop("model_type"), **values, bos_token_id=0, eos_token_id=2)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        (model.base_model if base else model).save_pretrained(folder)
        save_tokenizer(folder)
        return folder

    return make


def theirs(folder: Path, ids: Any) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").double().eval()
    with torch.no_grad():
        return model(torch.from_numpy(ids)[None]).logits[0].numpy()


@pytest.mark.parametrize("case", CASES)
def test_descriptions_are_those_of_transformers(made: Made, case: str) -> None:
    folder = made(case)
    checkpoint = open_checkpoint(folder)
    described, sources = arch.family(checkpoint.config).describe(checkpoint.config), checkpoint.sources()
    assert list(sources) == list(described.tensors)
    values = {name: checkpoint.read(source) for name, source in sources.items()}
    assert {name: value.shape for name, value in values.items()} == described.tensors
    ids = np.random.default_rng(0).integers(0, 320, 40)
    expected = theirs(folder, ids)
    actual = ReferenceModel(described, values).logits(ids)
    # transformers holds rotary tables in float32.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("case", CASES)
def test_pruned_ones_go_back(made: Made, tmp_path: Path, case: str) -> None:
    prune(made(case), tmp_path / "pruned", method="magnitude", sparsity=0.5)
    checkpoint = open_checkpoint(tmp_path / "pruned")
    described = arch.family(checkpoint.config).describe(checkpoint.config)
    values = {name: checkpoint.read(source) for name, source in checkpoint.sources().items()}
    assert all(0.49 < (values[name] == 0).mean() < 0.51 for name in described.linears)
    ids = np.random.default_rng(0).integers(0, 320, 20)
    expected = theirs(tmp_path / "pruned", ids)
    actual = ReferenceModel(described, values).logits(ids)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    report = json.loads((tmp_path / "pruned" / "gossamer_prune.json").read_text())
    assert len(report["layers"]) == len(described.linears)


def test_models_that_were_saved_without_a_head(made: Made) -> None:
    whole, base = open_checkpoint(made("gpt2")), open_checkpoint(made("gpt2", "base", base=True))
    assert "h.0.attn.c_attn.weight" in base.names()
    for name, source in base.sources().items():
        np.testing.assert_array_equal(base.read(source), whole.read(whole.sources()[name]))


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "heads": ("gpt2", {"n_head": 5}, "n_embd 48 is not a multiple of n_head 5"),
    "activation": ("gpt2", {"activation_function": "relu"}, "activation_function 'relu' is not supported"),
    "scale by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    "no scale": ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights is not supported"),
    "cross": ("gpt2", {"add_cross_attention": True}, "add_cross_attention is not supported"),
    "share": ("gpt_neox", {"rope_parameters": {**HALF, "partial_rotary_factor": 1.5}}, "must be at most 1, got 1.5"),
    "odd": ("gpt_neox", {"rope_parameters": {**HALF, "partial_rotary_factor": 0.2}}, "must be even, got 3"),
    "gate": ("gpt_neox", {"hidden_act": "silu"}, "hidden_act 'silu' is not supported; there are: gelu"),
    "text": ("gpt_neox", {"use_parallel_residual": "yes"}, "use_parallel_residual must be true or false"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_configs_name_the_key(case: str) -> None:
    base, changes, words = BAD[case]
    config = {**CASES[base], **changes}
    with pytest.raises(GossamerError) as error:
        arch.family(config).describe(config)
    assert words in str(error.value)


@pytest.mark.parametrize("case", CASES)
def test_the_engine_gives_their_logits(made: Made, case: str) -> None:
    folder = made(case)
    model = gossamer.load(folder, activations="f32")
    ids = np.random.default_rng(0).integers(0, 320, 50)
    expected = theirs(folder, ids)
    actual = model.decoder.step([(0, ids[:40])], all_logits=True)
    singly = [model.decoder.step([(0, ids[i : i + 1])])[0] for i in range(40, 50)]
    np.testing.assert_allclose(np.concatenate([actual, singly]), expected, rtol=0, atol=5e-5 * np.abs(expected).max())
    whole = model.decoder.step([(1, ids)], all_logits=True)
    np.testing.assert_array_equal(whole, np.concatenate([actual, singly]))


@pytest.mark.parametrize("pattern", [None, (2, 4)])
@pytest.mark.parametrize("case", ["gpt2", "gpt_neox"])
def test_they_are_pruned_packed_and_run(made: Made, tmp_path: Path, case: str, pattern: tuple[int, int] | None) -> None:
    zeros: dict[str, Any] = {"pattern": pattern} if pattern else {"sparsity": 0.5}
    (tmp_path / "text.txt").write_text("The spider spins a thread of gossamer. " * 60)
    calibration = {"calibration": tmp_path / "text.txt", "windows": 8, "length": 32}
    report = prune(made(case), tmp_path / "pruned", method="sparsegpt", **zeros, **calibration)
    assert report.reached == pytest.approx(0.5, abs=0.01)
    ids = np.random.default_rng(0).integers(0, 320, 20)
    expected = theirs(tmp_path / "pruned", ids)
    gossamer.convert(tmp_path / "pruned", tmp_path / "packed", weights="f32")
    model = gossamer.load(tmp_path / "packed", activations="f32")
    actual = model.decoder.step([(0, ids)], all_logits=True)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=5e-5 * np.abs(expected).max())
    assert isinstance(model.generate("The spider", chat=False, max_new_tokens=5), str)
    assert 1 < perplexity(model, "The thread holds the spider. " * 9, context=32).ppl < 1e6
