"""Families with experts, as tiny seeded models of transformers: the same logits, in each of our decoders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="transformers' models are the oracle here")
pytest.importorskip("transformers", reason="the oracle")
import torch
import transformers

import gossamer
from family_checks import check_named
from gossamer import arch
from gossamer.checkpoints import open_checkpoint
from gossamer.packing.folder import read_packed
from gossamer.pruning import prune
from reference_model import ReferenceModel
from tiny import made as seeded

SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 320, "max_position_embeddings": 64,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "mixtral": {**SMALL, "model_type": "mixtral", "num_local_experts": 4},
    "mixtral tied": {
        **SMALL, "model_type": "mixtral", "num_local_experts": 5, "num_experts_per_tok": 3, "head_dim": 20,
        "num_key_value_heads": 1, "tie_word_embeddings": True,
    },
    "mixtral window": {**SMALL, "model_type": "mixtral", "num_local_experts": 2, "sliding_window": 9},
    "olmoe": {
        **SMALL, "model_type": "olmoe", "num_experts": 6, "num_experts_per_tok": 3, "clip_qkv": 0.3,
        "num_key_value_heads": 4,
    },
    "olmoe normalized": {**SMALL, "model_type": "olmoe", "num_experts": 4, "num_experts_per_tok": 1,
        "norm_topk_prob": True, "attention_bias": True,
    },
    "qwen3_moe": {
        **SMALL, "model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 20,
        "norm_topk_prob": True, "head_dim": 16,
    },
    "qwen3_moe window": {
        **SMALL, "model_type": "qwen3_moe", "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 20,
        "use_sliding_window": True, "sliding_window": 9,
    },
    "qwen3_moe mixed": {
        **SMALL, "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 36,
        "num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3], "attention_bias": True,
    },
    "qwen2_moe": {
        **SMALL, "model_type": "qwen2_moe", "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 20,
        "shared_expert_intermediate_size": 28,
    },
    "qwen2_moe window": {
        **SMALL, "model_type": "qwen2_moe", "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 20,
        "shared_expert_intermediate_size": 28, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1,
    },
    "qwen2_moe no biases": {
        **SMALL, "model_type": "qwen2_moe", "num_experts": 4, "num_experts_per_tok": 4, "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 40, "norm_topk_prob": True, "qkv_bias": False, "mlp_only_layers": [0],
        "tie_word_embeddings": True,
    },
    "gpt_oss": {
        **SMALL, "model_type": "gpt_oss", "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8,
        "sliding_window": 10,
    },
    "gpt_oss odd": {
        **SMALL, "model_type": "gpt_oss", "num_local_experts": 3, "num_experts_per_tok": 1, "head_dim": 12,
        "num_key_value_heads": 1, "sliding_window": 7, "layer_types": ["full_attention", "sliding_attention"],
        "attention_bias": False, "swiglu_limit": 0.5, "swiglu_alpha": 1.3, "rope_parameters": {"rope_theta": 500.0},
    },
    "granitemoe": {
        **SMALL, "model_type": "granitemoe", "num_local_experts": 4, "num_experts_per_tok": 2,
        "attention_multiplier": 0.3, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0,
    },
    "granitemoe tied": {
        **SMALL, "model_type": "granitemoe", "num_local_experts": 3, "num_experts_per_tok": 3,
        "tie_word_embeddings": True, "attention_bias": True,
    },
}  # fmt: skip
Made = Callable[..., Path]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    def make(case: str, name: str = "model", change: Callable[[Any], None] | None = None) -> Path:
        return seeded(tmp_path / name, CASES[case], change=change)

    return make


def theirs(folder: Path, ids: Any) -> Any:
    eager = {"attn_implementation": "eager", "experts_implementation": "eager"}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **eager).double().eval()
    with torch.no_grad():
        return model(torch.from_numpy(ids)[None]).logits[0].numpy()


@pytest.mark.parametrize("case", CASES)
def test_the_same_logits_in_all_decoders(made: Made, case: str) -> None:
    from gossamer.nn import decoder as torch_decoder

    folder = made(case)
    checkpoint = open_checkpoint(folder)
    described, sources = arch.family(checkpoint.config).describe(checkpoint.config), checkpoint.sources()
    assert set(sources) == set(described.tensors)
    values = {name: checkpoint.read(source) for name, source in sources.items()}
    assert {name: value.shape for name, value in values.items()} == described.tensors
    ids = np.random.default_rng(0).integers(0, 320, 40)
    expected = theirs(folder, ids)
    most = np.abs(expected).max()
    # transformers holds rotary tables, and takes the softmax of routers, in float32.
    np.testing.assert_allclose(ReferenceModel(described, values).logits(ids), expected, rtol=0, atol=1e-6 * most)

    engine = gossamer.load(folder, activations="f32").decoder
    actual = engine.step([(0, ids[:30])], all_logits=True)
    singly = [engine.step([(0, ids[i : i + 1])])[0] for i in range(30, 40)]
    np.testing.assert_allclose(np.concatenate([actual, singly]), expected, rtol=0, atol=5e-5 * most)
    np.testing.assert_array_equal(
        engine.step([(1, ids), (2, ids[:7])], all_logits=True), np.concatenate([actual, singly, actual[:7]])
    )

    with torch.no_grad():
        trained = torch_decoder.load(folder)(torch.from_numpy(ids)[None]).logits[0].numpy()
    np.testing.assert_allclose(trained, expected, rtol=0, atol=5e-5 * most)


@pytest.mark.parametrize("pattern", [None, (2, 4)])
@pytest.mark.parametrize("case", ["mixtral", "olmoe", "qwen3_moe mixed", "qwen2_moe", "gpt_oss", "granitemoe"])
def test_they_are_pruned_go_back_and_are_packed(
    made: Made, tmp_path: Path, case: str, pattern: tuple[int, int] | None
) -> None:
    zeros: dict[str, Any] = {"pattern": pattern} if pattern else {"sparsity": 0.5}
    (tmp_path / "text.txt").write_text("The spider spins a thread of gossamer. " * 60)
    calibration = {"calibration": tmp_path / "text.txt", "windows": 8, "length": 32}
    folder = made(case)
    report = prune(folder, tmp_path / "pruned", method="sparsegpt", **zeros, **calibration)
    before, after = open_checkpoint(folder), open_checkpoint(tmp_path / "pruned")
    described = arch.family(after.config).describe(after.config)
    values = {name: after.read(source) for name, source in after.sources().items()}
    for name, source in before.sources().items():
        if name not in described.linears:  # routers, norms, embedding
            np.testing.assert_array_equal(values[name], before.read(source))
        elif pattern:
            assert (np.count_nonzero(values[name].reshape(-1, 4), axis=1) <= 2).all()
    assert report.reached == pytest.approx(0.5, abs=0.01)
    assert len(report.layers) == len(described.linears)
    ids = np.random.default_rng(0).integers(0, 320, 20)
    expected = theirs(tmp_path / "pruned", ids)
    gossamer.convert(tmp_path / "pruned", tmp_path / "packed", weights="f32")
    model = gossamer.load(tmp_path / "packed", activations="f32")
    actual = model.decoder.step([(0, ids)], all_logits=True)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=5e-5 * np.abs(expected).max())
    rounded = convert_and_read(tmp_path)
    for name in described.exact:
        assert (rounded[name].type, rounded[name].format) == ("f32", "dense")
        np.testing.assert_array_equal(rounded[name].unpack(), values[name])
    assert {weight.type for name, weight in rounded.items() if name in described.linears} == {"int4"}
    assert isinstance(model.generate("The spider", chat=False, max_new_tokens=5), str)


def convert_and_read(folder: Path) -> dict[str, Any]:
    gossamer.convert(folder / "pruned", folder / "int4", weights="int4", format="bitmap")
    return read_packed(folder / "int4").weights


def test_experts_that_no_token_came_to_are_pruned_by_magnitude(made: Made, tmp_path: Path) -> None:
    def first_ones(model: Any) -> None:
        for name, parameter in model.named_parameters():
            if name.endswith("mlp.gate.weight"):
                parameter.data.zero_()  # so that those of lowest number are chosen

    (tmp_path / "text.txt").write_text("The spider spins a thread of gossamer. " * 60)
    calibration = {"calibration": tmp_path / "text.txt", "windows": 4, "length": 32}
    # Nothing is made up for, but ADMM ends where steps are small.
    for method, apart in {"sparsegpt": 1e-6, "admm": 1e-2, "wanda": 0.0}.items():
        out = tmp_path / method
        report = prune(made("mixtral", method + "_dense", first_ones), out, method=method, sparsity=0.5, **calibration)
        unseen = {
            f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}.weight": 0
            for layer in (0, 1) for expert in (2, 3) for name in ("w1", "w2", "w3")
        }  # fmt: skip
        assert report.few_tokens == unseen
        assert report.reached == pytest.approx(0.5, abs=0.01)
        dense, pruned = open_checkpoint(tmp_path / (method + "_dense")), open_checkpoint(out)
        for name in unseen:
            was, now = dense.tensor(name), pruned.tensor(name)
            assert 0.1 < (now == 0).mean() < 0.9
            np.testing.assert_allclose(now[now != 0], was[now != 0], rtol=apart)
            assert np.abs(was[now == 0]).mean() < np.abs(was[now != 0]).mean() / 2


@pytest.mark.parametrize("case", ["mixtral", "qwen2_moe", "gpt_oss", "granitemoe"])
def test_ten_steps_of_training_keep_zeros_and_routers_are_rounded_no_more(
    made: Made, tmp_path: Path, case: str
) -> None:
    from finetune_runs import QUICK, TEXT
    from gossamer.finetune.options import Options
    from gossamer.finetune.pipeline import finetune

    (tmp_path / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    dense = made(case)
    prune(dense, tmp_path / "half", method="magnitude", sparsity=0.5)
    options = Options(**{**QUICK, "tokens": 640, "weights": "int8"})
    report = finetune(tmp_path / "half", tmp_path / "out", teacher=dense, data=[tmp_path / "text.txt"], options=options)
    assert report.steps == 10
    before, after = open_checkpoint(tmp_path / "half"), open_checkpoint(tmp_path / "out")
    described = arch.family(after.config).describe(after.config)
    for name, source in after.sources().items():
        was, now = before.read(before.sources()[name]), after.read(source)
        if name in described.linears:
            assert (now[was == 0] == 0).all()
        if name in described.exact:
            assert len(np.unique(now)) > now.size // 2  # not of 255 codes a group
            assert not np.array_equal(was, now)
    assert report.curve[-1]["perplexity"] < report.curve[0]["perplexity"]


def test_one_of_a_stack_is_read_alone(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(made("gpt_oss"))
    sources = {name: source for name, source in checkpoint.sources().items() if source.index is not None}
    assert len(sources) == 2 * 4 * 6
    whole = {name: source.read(checkpoint.tensor(source.tensor)) for name, source in sources.items()}
    monkeypatch.setattr(checkpoint, "tensor", None)
    for name, source in sources.items():
        np.testing.assert_array_equal(checkpoint.read(source, finite=True), whole[name])


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "more": ("mixtral", {"num_experts_per_tok": 5}, "num_experts_per_tok is 5, more than the 4 of num_local_experts"),
    "none": ("mixtral", {"num_local_experts": 0}, "num_local_experts must be a whole number from 1 to 4096"),
    "activation": ("mixtral", {"hidden_act": "relu"}, "hidden_act 'relu' is not supported"),
    "layers": ("qwen3_moe", {"mlp_only_layers": "0"}, "mlp_only_layers must be a list of layers, got '0'"),
    "in all": ("olmoe", {"num_experts": 4096, "num_hidden_layers": 17}, "which makes 69632 in all layers"),
    "two counts": ("gpt_oss", {"experts_per_token": 4}, "experts_per_token 4 is not num_experts_per_tok 2"),
    "kinds": ("mixtral window", {"layer_types": ["full_attention"] * 2}, "layer_types of mixtral must all be as"),
    "flag": ("mixtral window", {"use_sliding_window": False}, "use_sliding_window false contradicts sliding_window 9"),
    "kinds of qwen3_moe": (
        "qwen3_moe window",
        {"layer_types": ["full_attention", "sliding_attention"]},
        "layer_types of qwen3_moe must all be as sliding_window says",
    ),
    "groups": ("mixtral", {"n_group": 4, "moe_groups": 2}, "moe_groups is not supported"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_configs_name_the_key(case: str) -> None:
    base, changes, words = BAD[case]
    check_named({**CASES[base], **changes}, words)
