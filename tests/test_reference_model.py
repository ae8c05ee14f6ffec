"""The reference model itself, against transformers."""

from __future__ import annotations

import numpy as np
import pytest

from gossamer.arch.llama import Sizes
from reference_model import ReferenceModel, random_tensors


def _config(**changes: object) -> Sizes:
    fields = {
        "hidden": 48, "layers": 2, "heads": 6, "kv_heads": 2, "head_dim": 8, "intermediate": 80, "vocab": 96,
        "context": 64, "norm_eps": 1e-5, "inv_freq": tuple(10000.0 ** (-j / 4) for j in range(4)),
    }  # fmt: skip
    return Sizes(**(fields | changes))


@pytest.mark.parametrize("changes", [{}, {"tied": True}, {"kv_heads": 6, "head_dim": 16}])
@pytest.mark.parametrize("biases", [(), ("q", "k", "v", "o")])
def test_logits_equal_transformers(changes: dict[str, object], biases: tuple[str, ...]) -> None:
    torch = pytest.importorskip("torch", reason="transformers' model is the oracle here")
    transformers = pytest.importorskip("transformers", reason="the oracle")
    if "head_dim" in changes:
        changes = changes | {"inv_freq": tuple(10000.0 ** (-j / 8) for j in range(8))}
    config = _config(**changes, biases=biases)
    tensors = random_tensors(config.describe(), seed=3)
    oracle = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab,
            hidden_size=config.hidden,
            intermediate_size=config.intermediate,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.context,
            rms_norm_eps=config.norm_eps,
            tie_word_embeddings=config.tied,
            attention_bias=bool(biases),
            rope_theta=10000.0,
            attn_implementation="eager",
        )
    ).double()
    state = {_hf_name(name): torch.from_numpy(value).double() for name, value in tensors.items()}
    missing, unexpected = oracle.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if config.tied else set())

    tokens = np.random.default_rng(0).integers(0, config.vocab, 40)
    with torch.no_grad():
        expected = oracle.eval()(torch.from_numpy(tokens)[None]).logits[0].numpy()
    actual = ReferenceModel(config.describe(), tensors).logits(tokens)
    # transformers holds rotary angles and tables in float32: 40 positions x 2^-24 of an angle, through two blocks.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_sequences_of_a_call_do_not_see_each_other() -> None:
    config = _config().describe()
    model = ReferenceModel(config, random_tensors(config))
    hidden = model.embed(np.arange(24))
    together, captured = model.forward_block(0, hidden, ["o", "down"], sequence_length=8)
    for start in (0, 8, 16):
        alone, inputs = model.forward_block(0, hidden[start : start + 8], ["o", "down"])
        np.testing.assert_allclose(together[start : start + 8], alone, rtol=0, atol=1e-12)
        np.testing.assert_allclose(captured["o"][start : start + 8], inputs["o"], rtol=0, atol=1e-12)
    assert not np.allclose(together, model.forward_block(0, hidden)[0])


def _hf_name(name: str) -> str:
    if name in ("embed", "norm", "head"):
        return {"embed": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight"}[name]
    _, index, short, *bias = name.split(".")
    module = {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}.get(short)
    module = module or (f"self_attn.{short}_proj" if short in "qkvo" else f"mlp.{short}_proj")
    return f"model.layers.{index}.{module}.{bias[0] if bias else 'weight'}"
