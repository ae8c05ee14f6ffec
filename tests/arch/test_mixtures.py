"""Families with experts, as tiny seeded models of transformers: the same logits, in each of our decoders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer
from gossamer import arch
from gossamer.checkpoints import open_checkpoint
from gossamer.errors import GossamerError
from reference_model import ReferenceModel
from tiny import save_tokenizer

torch = pytest.importorskip("torch", reason="transformers' models are the oracle here")
transformers = pytest.importorskip("transformers", reason="the oracle")

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
    "qwen3_moe mixed": {
        **SMALL, "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 36,
        "num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3], "attention_bias": True,
    },
    "qwen2_moe": {
        **SMALL, "model_type": "qwen2_moe", "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 20,
        "shared_expert_intermediate_size": 28,
    },
    "qwen2_moe no biases": {
        **SMALL, "model_type": "qwen2_moe", "num_experts": 4, "num_experts_per_tok": 4, "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 40, "norm_topk_prob": True, "qkv_bias": False, "mlp_only_layers": [0],
        "tie_word_embeddings": True,
    },
}  # fmt: skip
Made = Callable[..., Path]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    def make(case: str, name: str = "model") -> Path:
        folder = tmp_path / name
        torch.manual_seed(0)
        values = dict(CASES[case])
        config = transformers.AutoConfig.for_model(values.pop("model_type"), **values, bos_token_id=0, eos_token_id=2)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(folder)
        save_tokenizer(folder)
        return folder

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


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "more": ("mixtral", {"num_experts_per_tok": 5}, "num_experts_per_tok is 5, more than the 4 of num_local_experts"),
    "none": ("mixtral", {"num_local_experts": 0}, "num_local_experts must be a whole number from 1 to 4096"),
    "activation": ("mixtral", {"hidden_act": "relu"}, "hidden_act 'relu' is not supported"),
    "layers": ("qwen3_moe", {"mlp_only_layers": "0"}, "mlp_only_layers must be a list of layers, got '0'"),
    "in all": ("olmoe", {"num_experts": 4096, "num_hidden_layers": 17}, "which makes 69632 in all layers"),
    "groups": ("mixtral", {"n_group": 4, "moe_groups": 2}, "moe_groups is not supported"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_configs_name_the_key(case: str) -> None:
    base, changes, words = BAD[case]
    config = {**CASES[base], **changes}
    with pytest.raises(GossamerError) as error:
        arch.family(config).describe(config)
    assert words in str(error.value)
