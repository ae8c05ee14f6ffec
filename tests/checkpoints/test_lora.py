"""PEFT's folders: what a config says of a module, ranks that add nothing, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapter_files import factors, write_lora
from gossamer.checkpoints.lora import read_lora
from gossamer.errors import GossamerError

SHAPES = {
    "model.layers.0.self_attn.q_proj": (12, 8),
    "model.layers.1.self_attn.q_proj": (12, 8),
    "model.layers.1.mlp.down_proj": (8, 20),
}


@pytest.mark.parametrize(
    ("config", "scales"),
    [
        ({}, (1, 1, 1)),
        ({"lora_alpha": 6}, (1.5, 1.5, 1.5)),
        ({"lora_alpha": 6, "use_rslora": True}, (3, 3, 3)),
        ({"lora_alpha": 6, "alpha_pattern": {"down_proj": 2}}, (1.5, 1.5, 0.5)),
        ({"alpha_pattern": {"layers.1.self_attn.q_proj": 8, "q_proj": 2}}, (0.5, 2, 1)),
        ({"alpha_pattern": {"^model.layers.0.self_attn.q_proj": 8, "^q_proj": 1}}, (2, 1, 1)),
        ({"alpha_pattern": {"self.attn.q_proj": 2}}, (0.5, 0.5, 1)),
        ({"r": 64, "rank_pattern": {"q_proj": 4, "down_proj": 4}, "lora_alpha": 4}, (1, 1, 1)),
        ({"alpha_pattern": {"j": 2, "roj": 3, "_proj": 5}}, (1, 1, 1)),
    ],
)
def test_scales_are_those_of_the_config(tmp_path: Path, config: dict[str, Any], scales: tuple[float, ...]) -> None:
    made = factors(SHAPES, 4)
    read = read_lora(write_lora(tmp_path / "adapter", made, **config))
    assert list(read) == list(made)
    for (b, a), branch, scale in zip(made.values(), read.values(), scales, strict=True):
        np.testing.assert_allclose(branch.u @ branch.v, b @ a * scale, rtol=0, atol=1e-6)


def test_ranks_that_add_nothing_are_dropped(tmp_path: Path) -> None:
    """Zero rows of A, zero columns of B, zeros of a gate (SoRA); where none is left, one stays."""
    made = factors(SHAPES, 6)
    first, second, third = made
    made[first][1][[0, 4]] = 0
    made[first][0][:, [1, 4]] = 0
    made[second][1][:] = 0
    gate = np.array([[0.5, 0, -2, 0, 0, 1]], np.float32)
    for number, name in enumerate((".lora_gate", ".gate")):
        more = {f"base_model.model.{third}{name}": gate}
        read = read_lora(write_lora(tmp_path / str(number), made, more))
        assert {module: branch.v.shape[0] for module, branch in read.items()} == {first: 3, second: 1, third: 3}
        assert not (read[second].u @ read[second].v).any()
        np.testing.assert_allclose(read[first].u @ read[first].v, made[first][0] @ made[first][1], rtol=0, atol=1e-6)
        expected = made[third][0] @ (gate.T * made[third][1])
        np.testing.assert_allclose(read[third].u @ read[third].v, expected, rtol=0, atol=1e-6)


MODULE = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("config", "more", "words"),
    [
        ({"peft_type": "ADALORA"}, {}, "adapter_config.json: peft_type 'ADALORA' is not supported"),
        ({"use_dora": True}, {}, "adapter_config.json: use_dora is not supported"),
        ({"bias": "lora_only"}, {}, "adapter_config.json: bias 'lora_only' is not supported"),
        ({"lora_bias": True}, {}, "lora_bias is not supported"),
        ({"modules_to_save": ["lm_head"]}, {}, "modules_to_save is not supported, got ['lm_head']"),
        ({"trainable_token_indices": [3]}, {}, "trainable_token_indices is not supported"),
        ({"layer_replication": [[0, 2]]}, {}, "layer_replication is not supported"),
        ({"target_parameters": ["experts.gate"]}, {}, "target_parameters is not supported"),
        ({"alora_invocation_tokens": [5]}, {}, "alora_invocation_tokens is not supported"),
        ({"a_key_of_tomorrow": 1}, {}, "a_key_of_tomorrow is not supported, got 1"),
        (
            {"init_lora_weights": "pissa"},
            {},
            "init_lora_weights 'pissa' is not supported, since it changes the model's",
        ),
        ({"init_lora_weights": "olora"}, {}, "init_lora_weights 'olora' is not supported"),
        ({"base_model_name_or_path": ["x"]}, {}, "base_model_name_or_path must be a text, got ['x']"),
        ({"use_rslora": "yes"}, {}, "use_rslora must be true or false"),
        ({"r": 3}, {}, f"{MODULE} has a rank of 4, and adapter_config.json says 3"),
        ({"rank_pattern": {"q_proj": 3}}, {}, f"{MODULE} has a rank of 4, and adapter_config.json says 3"),
        ({"rank_pattern": {"layers.(0|1).q": 4}}, {}, "rank_pattern: 'layers.(0|1).q' is no name of a module"),
        ({"alpha_pattern": [1]}, {}, "alpha_pattern must be an object"),
        (
            {"target_modules": ["q_proj"]},
            {},
            "adapter_model.safetensors: has factors of model.layers.1.mlp.down_proj, which target_modules of",
        ),
        ({"exclude_modules": ["mlp.down_proj"]}, {}, "down_proj, which exclude_modules of adapter_config.json leaves"),
        ({"layers_to_transform": [0]}, {}, "model.layers.1.self_attn.q_proj, which layers_to_transform of"),
        ({"layers_to_transform": 1}, {}, "model.layers.0.self_attn.q_proj, which layers_to_transform of"),
        ({"lora_alpha": float("inf")}, {}, "adapter_config.json"),
        ({"lora_alpha": True}, {}, "r must be a number of at least 1 and lora_alpha a finite one"),
        ({}, {f"{MODULE}.lora_magnitude_vector": (12,)}, "lora_magnitude_vector is no factor of a linear"),
        ({}, {f"{MODULE}.lora_embedding_A": (4, 9)}, "lora_embedding_A is no factor of a linear"),
        ({}, {"model.layers.0.mlp.up_proj.lora_A.weight": (4, 8)}, "lora_A.weight is no factor of a linear"),
        ({}, {"base_model.model.x.lora_B.weight": (4, 8)}, "tensor base_model.model.x.lora_A.weight is missing"),
        ({}, {f"{MODULE}.gate": (3,)}, f"tensor {MODULE}.gate has 3 values for a rank of 4"),
        ({}, {f"{MODULE}.lora_A.weight": (5, 8)}, f"tensors of {MODULE} have shapes [12, 4] and [5, 8]"),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_what_is_not_done_is_one_line(
    tmp_path: Path, config: dict[str, Any], more: dict[str, tuple[int, ...]], words: str
) -> None:
    folder = write_lora(
        tmp_path / "adapter", factors(SHAPES, 4), {name: np.ones(s, np.float32) for name, s in more.items()}, **config
    )
    with pytest.raises(GossamerError) as error:
        read_lora(folder)
    assert words in str(error.value)
    assert str(folder) in str(error.value)


def test_values_are_finite(tmp_path: Path) -> None:
    made = factors(SHAPES, 4)
    made["model.layers.1.mlp.down_proj"][0][0, 0] = np.inf
    with pytest.raises(GossamerError, match=r"a tensor of base_model\..*down_proj has NaN or infinite values"):
        read_lora(write_lora(tmp_path / "adapter", made))


def test_files_that_are_missing(tmp_path: Path) -> None:
    folder = write_lora(tmp_path / "adapter", factors(SHAPES, 4))
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(GossamerError, match=r"adapter_model\.safetensors: No such file"):
        read_lora(folder)
