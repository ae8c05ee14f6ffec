"""What `inspect` and `convert --dry-run` say that a token takes."""

from __future__ import annotations

from typing import Any

import pytest

from gossamer.arch import family
from gossamer.cli.layers import Layer, totals, within

SIZES = {"vocab_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("config", "shares"),
    [
        (
            {
                "model_type": "mixtral", "hidden_size": 64, "intermediate_size": 96, "num_key_value_heads": 2,
                "num_local_experts": 8, "num_experts_per_tok": 2, **SIZES,
            },
            {"embed": 0, "layers.0.experts.": 0.25},
        ),
        (
            {
                "model_type": "t5", "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 1, "num_heads": 4,
                "vocab_size": 64,
            },
            {"encoder.": 0, "relative_bias": 0},
        ),
    ],
)  # fmt: skip
def test_a_token_takes_the_time_of_what_it_reads(config: dict[str, Any], shares: dict[str, float]) -> None:
    described = family(config).describe(config)
    layers = [Layer(name, *shape, 0.0, "", "dense", "f32", 4) for name, shape in described.weights.items()]
    expected = 0.0
    for layer in layers:
        share = next((share for start, share in shares.items() if layer.name.startswith(start)), 1)
        expected += share * (layer.times or (0, 0))[0]
    assert all(any(layer.name.startswith(start) for layer in layers) for start in shares)
    assert totals(within(layers, described))["seconds"] == pytest.approx(expected)
