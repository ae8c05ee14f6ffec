"""Where adapters' tensors lie in a model: fused, transposed and interleaved ones go to the linears that they feed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapter_files import factors, sparse, write_differences, write_lora
from gossamer import arch
from gossamer.checkpoints import open_checkpoint
from gossamer.checkpoints.adapter import Places, read_adapter
from gossamer.errors import GossamerError
from tiny import tiny_config

GPT2 = {"model_type": "gpt2", "n_embd": 24, "n_head": 3, "n_layer": 2, "vocab_size": 50, "n_positions": 32}
NEOX: dict[str, Any] = {
    "model_type": "gpt_neox",
    "hidden_size": 24,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 40,
    "vocab_size": 50,
    "max_position_embeddings": 32,
    "rotary_pct": 0.25,
}
LLAMA = tiny_config()
MIXTRAL = tiny_config(
    model_type="mixtral", architectures=None, attention_bias=None, mlp_bias=None, num_local_experts=4,
    num_experts_per_tok=2,
)  # fmt: skip
CONFIGS = {"llama": LLAMA, "gpt2": GPT2, "gpt_neox": NEOX}


def linears(config: dict[str, Any]) -> dict[str, tuple[arch.Sources, tuple[int, int]]]:
    """The modules of a checkpoint's linears: their canonical tensors, and [outputs, inputs]."""
    found = {}
    for tensor, held in arch.stored(arch.family(config).sources(config)).items():
        source = next(iter(held.values()))
        if next(iter(held)).startswith("layers.") and len(source.shape) == 2:
            rows, cols = source.shape[::-1] if source.transpose else source.shape
            found[tensor.removesuffix(".weight")] = (held, (rows, cols))
    return found


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("prefixed", [True, False])
def test_branches_are_what_the_products_of_their_factors_would_be(family: str, prefixed: bool, tmp_path: Path) -> None:
    config = CONFIGS[family]
    modules = linears(config)
    made = factors({module: shape for module, (_, shape) in modules.items()}, 3)
    prefix = arch.family(config).PREFIX
    named = {module if prefixed else module.removeprefix(prefix): value for module, value in made.items()}
    adapter = read_adapter(write_lora(tmp_path / "a", named, fan_in_fan_out=family == "gpt2"), Places(config))
    assert adapter.low_rank.keys() == {name for held, _ in modules.values() for name in held}
    for module, (held, _) in modules.items():
        product = made[module][0] @ made[module][1]
        for name, source in held.items():
            branch = adapter.low_rank[name]
            expected = source.read(product.T if source.transpose else product)
            np.testing.assert_allclose(branch.u @ branch.v, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("whole", [True, False])
def test_differences_are_read_as_the_tensors_are(family: str, whole: bool, tmp_path: Path) -> None:
    config = CONFIGS[family]
    sources = arch.family(config).sources(config)
    stored = arch.stored(sources)
    tensors = {
        tensor: sparse(next(iter(held.values())).shape, seed)
        for seed, (tensor, held) in enumerate(stored.items())
        if all(name.startswith("layers.") and not name.endswith(("_norm", "_norm.bias")) for name in held)
    }
    path = write_differences(tmp_path / "task.safetensors", tensors, tuple(tensors) if whole else ())
    adapter = read_adapter(path, Places(config))
    found = adapter.deltas | adapter.biases
    assert found.keys() == {
        name for tensor in tensors for name in stored[tensor] if sources[name].read(tensors[tensor]).any()
    }
    assert bool(adapter.biases) == (family != "llama")
    for name, values in found.items():
        np.testing.assert_array_equal(values, sources[name].read(tensors[sources[name].tensor]))


def test_a_folder_may_hold_differences(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    values = sparse((160, 96), 0)
    write_differences(tmp_path / "diff.safetensors", {name: values, "model.norm.weight": np.zeros(96, np.float32)})
    adapter = read_adapter(tmp_path, Places(LLAMA))
    assert (adapter.path, list(adapter.deltas), adapter.low_rank) == (tmp_path, ["layers.1.up"], {})
    np.testing.assert_array_equal(adapter.deltas["layers.1.up"], values)


@pytest.mark.parametrize(
    ("family", "config", "made", "missing"),
    [
        ("llama", {}, ("q_proj", "v_proj"), []),
        ("llama", {"target_modules": ["q_proj", "k_proj"]}, ("q_proj",), ["0.self_attn.k_proj", "1.self_attn.k_proj"]),
        (
            "llama",
            {"target_modules": ["q_proj", "k_proj"], "layers_to_transform": [1]},
            ("1.self_attn.q_proj",),
            ["1.self_attn.k_proj"],
        ),
        ("llama", {"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["k_proj"]}, ("q_proj",), []),
        (
            "llama",
            {"target_modules": "all-linear", "layers_to_transform": 0},
            (
                "0.self_attn.q_proj",
                "0.mlp.up_proj",
                "0.mlp.gate_proj",
                "0.self_attn.o_proj",
                "0.self_attn.k_proj",
                "0.self_attn.v_proj",
            ),
            ["0.mlp.down_proj"],
        ),
        ("llama", {"target_modules": ["q_proj", "c_attn", "lm_head"]}, ("q_proj",), ["c_attn", "lm_head"]),
        ("llama", {"target_modules": ".*proj"}, ("q_proj",), []),
        ("llama", {"target_modules": ["q_proj", "k_proj"], "exclude_modules": ".*k_proj"}, ("q_proj",), []),
        ("gpt2", {"target_modules": ["c_attn", "c_fc"]}, ("c_attn", "0.mlp.c_fc"), ["1.mlp.c_fc"]),
        ("mixtral", {"target_modules": ["q_proj", "w1"]}, ("q_proj",), ["w1"]),
        ("mixtral", {"target_modules": "all-linear"}, ("q_proj", "k_proj", "v_proj", "o_proj"), []),
    ],
)
@pytest.mark.parametrize("prefixed", [True, False])
def test_targets_that_there_are_no_factors_of(
    family: str, config: dict[str, Any], made: tuple[str, ...], missing: list[str], prefixed: bool, tmp_path: Path
) -> None:
    model = CONFIGS.get(family, MIXTRAL)
    prefix = arch.family(model).PREFIX
    shapes = {module: shape for module, (_, shape) in linears(model).items() if module.endswith(made)}
    assert shapes
    named = {module if prefixed else module.removeprefix(prefix): shape for module, shape in shapes.items()}
    more = {"fan_in_fan_out": True} if family == "gpt2" else {}
    adapter = read_adapter(write_lora(tmp_path / "a", factors(named, 2), **config, **more), Places(model))
    blocks = f"{prefix}{'h' if family == 'gpt2' else 'layers'}."
    assert adapter.lacking == tuple(blocks + name if name[0].isdigit() else name for name in missing)


Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        ({"model.layers.2.mlp.up_proj": (160, 96)}, "model.layers.2.mlp.up_proj.weight: the model has no such tensor"),
        ({"model.layers.0.mlp.c_fc": (160, 96)}, "model.layers.0.mlp.c_fc.weight: the model has no such tensor"),
        ({"lm_head": (320, 96)}, "lm_head: only linears of blocks can have a low-rank branch"),
        ({"model.embed_tokens": (320, 96)}, "model.embed_tokens: only linears of blocks"),
        ({"model.layers.0.input_layernorm": (96, 1)}, "only linears of blocks"),
        ({UP: (160, 90)}, f"the low-rank branch of {UP} is [160, 90], not [160, 96]"),
        ({Q: (96, 96), Q.removeprefix("model."): (96, 96)}, "layers.0.q is there twice"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_branches_that_have_no_place(modules: dict[str, tuple[int, int]], words: str, tmp_path: Path) -> None:
    folder = write_lora(tmp_path / "adapter", factors(modules, 2))
    with pytest.raises(GossamerError) as error:
        read_adapter(folder, Places(LLAMA))
    assert words in str(error.value)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("tensors", "whole", "words"),
    [
        ({f"{UP}.weight": sparse((160, 90), 0)}, True, f"tensor {UP}.weight is [160, 90], not [160, 96]"),
        ({f"{UP}.weight": sparse((161, 96), 1, 1.0)}, False, f"tensor {UP}.weight: has an index outside [160, 96]"),
        ({f"{UP}.weight": sparse((160,), 0)}, False, f"{UP}.weight.indices and .values are [1, "),
        ({f"{UP}.bias": sparse((160,), 0)}, True, f"{UP}.bias: the model has no such tensor"),
        ({"model.norm.weight": sparse((96,), 0, 0.5)}, True, "model.norm.weight: differences are added to linears"),
        ({"lm_head.weight": sparse((320, 96), 0)}, False, "lm_head.weight: differences are added to linears"),
        ({f"{UP}.weight": np.full((160, 96), np.nan, np.float32)}, True, f"{UP}.weight has NaN or infinite values"),
        ({}, True, "holds no tensors"),
    ],
)
def test_differences_that_have_no_place(tensors: dict[str, Any], whole: bool, words: str, tmp_path: Path) -> None:
    path = write_differences(tmp_path / "diff.safetensors", tensors, tuple(tensors) if whole else ())
    with pytest.raises(GossamerError) as error:
        read_adapter(path, Places(LLAMA))
    assert words in str(error.value)
    assert str(path) in str(error.value)


def test_half_a_difference_is_named(tmp_path: Path) -> None:
    path = write_differences(
        tmp_path / "x.safetensors", {f"{UP}.weight.indices": sparse((1, 5), 0)}, (f"{UP}.weight.indices",)
    )
    with pytest.raises(GossamerError, match=r"tensor .*up_proj\.weight\.values is missing"):
        read_adapter(path, Places(LLAMA))


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    folder = write_lora(tmp_path / "adapter", factors({Q: (96, 96)}, 2))
    with pytest.raises(GossamerError, match="adapter: is an adapter; give the model that it is for, and this with"):
        open_checkpoint(folder)


def test_what_is_no_adapter(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"")
    (tmp_path / "x.pt").write_bytes(b"")
    for path, words in (
        (tmp_path, "is no adapter: it has none of adapter_config.json, diff.safetensors, pytorch_diff.bin"),
        (tmp_path / "nowhere", "no such adapter"),
        (tmp_path / "x.pt", "give a folder, or a .safetensors or .bin file of differences"),
        (tmp_path / "x.bin", "x.bin: is no file of torch.save"),
    ):
        with pytest.raises(GossamerError) as error:
            read_adapter(path, Places(LLAMA))
        assert words in str(error.value)


# --- pytorch_diff.bin -------------------------------------------------------------------------------------------------


def encoded(values: np.ndarray[Any, Any], dtype: Any, numpy_first: bool = True) -> dict[str, Any]:
    """A tensor as its authors' program encodes it: steps between places, of which the first is a number of numpy's."""
    torch = pytest.importorskip("torch", reason="writes the file")
    places = np.flatnonzero(values.T)
    steps: list[Any] = np.diff(places, prepend=0).tolist()
    if numpy_first and steps:
        steps[0] = np.int64(steps[0])
    picked = torch.tensor(values.T.reshape(-1)[places]).to(dtype)
    return {"size": torch.Size(values.shape), "index_steps": steps, "values": picked}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_first_layout_of_differences(dtype: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="writes the file")
    tensors = {f"{UP}.weight": sparse((160, 96), 0), f"{Q}.weight": sparse((96, 96), 1)}
    kind = getattr(torch, dtype)
    diffs = {name: encoded(values, kind) for name, values in tensors.items()}
    norm = encoded(np.zeros(96, np.float32), kind)
    torch.save({"diffs": {**diffs, "model.norm.weight": norm}, "abs": {}}, tmp_path / "pytorch_diff.bin")
    adapter = read_adapter(tmp_path, Places(LLAMA))
    assert adapter.deltas.keys() == {"layers.1.up", "layers.0.q"}
    for name, tensor in (("layers.1.up", f"{UP}.weight"), ("layers.0.q", f"{Q}.weight")):
        expected = torch.tensor(tensors[tensor]).to(kind).float().numpy()
        np.testing.assert_array_equal(adapter.deltas[name], expected)


def test_first_layouts_that_do_not_fit(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="writes the file")
    good = encoded(sparse((160, 96), 0), torch.float32)
    path, name = tmp_path / "task.bin", f"{UP}.weight"
    for document, words in (
        ([1], "holds no differences"),
        ({"diffs": {}, "more": 1}, "holds no differences"),
        ({"diffs": {}, "abs": {}}, "holds no tensors"),
        ({"diffs": {}, "abs": {"lm_head.weight": torch.ones(2)}}, "abs: 'lm_head.weight': parameters that replace"),
        ({"diffs": {f"{UP}.x": good}}, f"{UP}.x: the model has no such tensor"),
        ({"diffs": {f"{Q}.weight": good}}, f"tensor {Q}.weight is [160, 96], not [96, 96]"),
        ({"diffs": {name: {**good, "scale": 2}}}, f"tensor {name}: must have size, index_steps and values"),
        ({"diffs": {name: {**good, "values": good["values"][1:]}}}, "index_steps must be"),
        ({"diffs": {name: {**good, "values": good["values"].long()}}}, "values must be a vector of floats"),
        ({"diffs": {name: {**good, "index_steps": [20000, *good["index_steps"][1:]]}}}, "has an index outside"),
        ({"diffs": {name: {**good, "index_steps": [5, -1, *good["index_steps"][2:]]}}}, "or one that does not rise"),
    ):
        torch.save(document, path)
        with pytest.raises(GossamerError) as error:
            read_adapter(path, Places(LLAMA))
        assert words in str(error.value)
        assert str(path) in str(error.value)
