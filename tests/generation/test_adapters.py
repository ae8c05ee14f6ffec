"""Adapters of a model: what they add, by weight and by text, against the float64 model whose weights were merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gossamer
from adapter_files import Factors, factors, sparse, write_differences, write_lora
from fakes import fake_model
from gossamer import _core, arch
from gossamer.arch.sources import Source
from gossamer.checkpoints import open_checkpoint
from gossamer.errors import GossamerError
from gossamer.generation.model import Model
from gossamer.packing.convert import convert
from reference_model import ReferenceModel
from tiny import tiny_config, tiny_llama, tiny_shapes, tokens

MODULES = {
    name.removesuffix(".weight"): (shape[0], shape[1])
    for name, shape in tiny_shapes(tiny_config()).items()
    if "_proj" in name
}


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return gossamer.load(tiny_llama(tmp_path / "base"))


def merged(tmp_path: Path, *added: tuple[dict[str, NDArray[Any]], float]) -> ReferenceModel:
    """The base with products and differences, by the name of a stored tensor, times weights."""
    checkpoint = open_checkpoint(tmp_path / "base")
    exact = {}
    for name, source in checkpoint.sources().items():
        values = checkpoint.tensor(source.tensor).astype(np.float64)
        for tensors, weight in added:
            values = values + weight * np.asarray(tensors.get(source.tensor, 0.0), np.float64)
        assert source == Source(source.tensor, source.shape)
        exact[name] = values
    return ReferenceModel(arch.family(checkpoint.config).describe(checkpoint.config), exact)


def products(made: Factors) -> dict[str, NDArray[Any]]:
    return {f"{module}.weight": b.astype(np.float64) @ a for module, (b, a) in made.items()}


def differences(seed: int) -> dict[str, NDArray[np.float32]]:
    return {f"{module}.weight": sparse(shape, seed + i) for i, (module, shape) in enumerate(MODULES.items())}


BASE_IN_CACHE = "/x/models--somebody--base/snapshots/0123"
# f32 all the way, as of logits between formats and against transformers; activations are of order 1 to 10.
TOLERANCE = {"atol": 1e-4, "rtol": 0}


@pytest.mark.parametrize("weight", [1.0, 0.5, 0.0, -0.75])
def test_a_lora_folder_is_its_merged_model(model: Model, weight: float, tmp_path: Path) -> None:
    made = factors(MODULES, 4)
    write_lora(tmp_path / "task", made, lora_alpha=8, use_rslora=True)
    bare = model.logits(tokens())
    assert model.adapters.load(tmp_path / "task", weight=weight) == "task"
    expected = merged(tmp_path, (products(made), 4.0 * weight)).logits(tokens())
    np.testing.assert_allclose(model.logits(tokens()), expected, **TOLERANCE)
    assert np.array_equal(model.logits(tokens()), bare) == (weight == 0)


def test_a_rank_pruned_adapter_is_as_small_as_what_is_left(model: Model, tmp_path: Path) -> None:
    made = factors(MODULES, 32)
    gates = {}
    for number, (module, (_, a)) in enumerate(made.items()):
        gate = np.ones((1, 32), np.float32)
        gate[0, number % 5 :] = 0
        gates[f"base_model.model.{module}.lora_gate"] = gate
        a[number % 5 :] += 1  # which the gate shuts out
    model.adapters.load(write_lora(tmp_path / "sora", made, gates))
    left = {module: (b[:, : number % 5], a[: number % 5]) for number, (module, (b, a)) in enumerate(made.items())}
    expected = merged(tmp_path, (products(left), 1.0)).logits(tokens())
    np.testing.assert_allclose(model.logits(tokens()), expected, **TOLERANCE)
    full = gossamer.load(tmp_path / "base")
    full.adapters.load(write_lora(tmp_path / "lora", factors(MODULES, 32)))
    assert model.adapters.bytes(model.mix()) < 0.5 * full.adapters.bytes(full.mix())


def test_a_language_and_a_task_are_the_sum_of_their_differences(model: Model, tmp_path: Path) -> None:
    language, task = differences(0), differences(100)
    for name, tensors in (("language", language), ("task", task)):
        model.adapters.load(write_differences(tmp_path / f"{name}.safetensors", tensors), name)
    made = factors(MODULES, 3)
    model.adapters.load(write_lora(tmp_path / "lora", made), weight=0.5)
    for chosen, added in (
        (None, [(language, 1.0), (task, 1.0), (products(made), 0.5)]),
        (["language", "task"], [(language, 1.0), (task, 1.0)]),
        ({"task": 0.25, "lora": -1.0}, [(task, 0.25), (products(made), -1.0)]),
        ("language", [(language, 1.0)]),
        ({}, []),
    ):
        expected = merged(tmp_path, *added).logits(tokens())
        np.testing.assert_allclose(model.logits(tokens(), chosen), expected, **TOLERANCE)


def test_texts_choose_and_models_switch(model: Model, tmp_path: Path) -> None:
    one, two = (
        model.adapters.load(write_lora(tmp_path / name, factors(MODULES, 8, seed)))
        for seed, name in enumerate(("one", "two"))
    )
    ask: dict[str, Any] = {"max_new_tokens": 12, "chat": False, "temperature": 1.0, "seed": 2}
    model.adapters.set({})
    texts = {name: model.generate("The net", adapters=name, **ask) for name in (one, two)}
    plain = model.generate("The net", **ask)
    assert len({plain, *texts.values()}) == 3
    for name in (two, one, two):
        model.adapters.set(name)
        assert model.generate("The net", **ask) == texts[name]
        assert model.generate("The net", adapters={}, **ask) == plain
    model.adapters.set({})
    streams = [model.stream("The net", adapters=name, **ask) for name in (one, {}, two)]
    beside = [next(pieces) for pieces in streams]  # all have begun
    beside = [first + "".join(pieces) for first, pieces in zip(beside, streams, strict=True)]
    assert beside == [texts[one], plain, texts[two]]
    model.adapters.remove(one)
    assert list(model.adapters) == [two]
    assert model.generate("The net", adapters=two, **ask) == texts[two]


def test_a_conversation_forgets_what_other_adapters_computed(model: Model, tmp_path: Path) -> None:
    model.adapters.load(write_lora(tmp_path / "a", factors(MODULES, 8)))
    chat = model.conversation(adapters={})
    "".join(chat.say("the net", max_new_tokens=4))
    "".join(chat.say("the web", max_new_tokens=4))
    assert model.last_stats is not None
    assert model.last_stats.reused_tokens > 0
    assert model.last_stats.weight_bytes == model.decoder.weight_bytes
    chat.adapters = "a"
    answer = "".join(chat.say("the net", max_new_tokens=4))
    assert model.last_stats.reused_tokens == 0
    assert model.last_stats.weight_bytes == model.decoder.weight_bytes + model.adapters.bytes(model.mix("a"))
    with pytest.raises(GossamerError, match=r"a: adapter 1 is in use by sequence \d+"):
        model.adapters.remove("a")
    fresh = model.conversation(adapters="a")
    fresh.messages = list(chat.messages[:-2])
    assert "".join(fresh.say("the net", max_new_tokens=4)) == answer
    chat.reset()
    fresh.reset()
    model.adapters.remove("a")
    with pytest.raises(GossamerError, match="there is no adapter 'a'; loaded: none"):
        chat.say("the net")


@pytest.mark.parametrize("weights", ["f32", "int8"])
def test_packed_folders_take_them(weights: str, tmp_path: Path) -> None:
    convert(tiny_llama(tmp_path / "base"), tmp_path / "packed", weights=weights)
    made = factors(MODULES, 4)
    write_lora(tmp_path / "task", made)
    packed, direct = gossamer.load(tmp_path / "packed"), gossamer.load(tmp_path / "base", weights=weights)
    for model in (packed, direct):
        model.adapters.load(tmp_path / "task")
    np.testing.assert_array_equal(packed.logits(tokens()), direct.logits(tokens()))
    size = sum((-(-b.shape[0] // 64) * 64 * 4 + 16 * a.shape[1]) for b, a in made.values())
    assert packed.adapters.bytes(packed.mix()) >= size * (4 if weights == "f32" else 2)


def test_values_are_no_coarser_than_the_model_s(tmp_path: Path) -> None:
    """Beside int8 weights factors are bf16 and differences int8, of which zeros stay zeros; weights may be switched."""
    folder = tiny_llama(tmp_path / "base")
    made, task = factors(MODULES, 4), differences(7)
    write_lora(tmp_path / "lora", made)
    write_differences(tmp_path / "task.safetensors", task)
    model = gossamer.load(folder, weights="int8", activations="f32")
    exact = {name: weight.unpack().astype(np.float64) for name, weight in model.weights.items()}
    for path in ("lora", "task.safetensors"):
        model.adapters.load(tmp_path / path, path)
    for name, source in open_checkpoint(folder).sources().items():
        module = source.tensor.removesuffix(".weight")
        if module in made:
            b, a = (_core.pack(factor, "dense", "bf16").unpack().astype(np.float64) for factor in made[module])
            delta = _core.pack(task[source.tensor], "csr", "int8", 64).unpack()
            exact[name] = exact[name] + b @ a + 0.5 * delta
        elif source.shape[1:] == ():
            exact[name] = open_checkpoint(folder).tensor(source.tensor)
    expected = ReferenceModel(model.config, exact).logits(tokens())
    np.testing.assert_allclose(model.logits(tokens(), {"lora": 1, "task.safetensors": 0.5}), expected, **TOLERANCE)


def test_folders_that_do_not_say_where_tensors_lie(tmp_path: Path) -> None:
    convert(tiny_llama(tmp_path / "base"), tmp_path / "packed")
    model = gossamer.load(tmp_path / "packed")
    del model.info["config"]
    with pytest.raises(GossamerError, match="was packed before adapters were known; convert the checkpoint again"):
        model.adapters.load(write_lora(tmp_path / "task", factors(MODULES, 4)))


def test_names_weights_and_types_are_checked(model: Model, tmp_path: Path) -> None:
    write_lora(tmp_path / "task", factors(MODULES, 4))
    model.adapters.load(tmp_path / "task")
    for call, words in (
        (lambda: model.adapters.load(tmp_path / "task"), "an adapter 'task' is loaded already"),
        (lambda: model.adapters.load(tmp_path / "task", "b", weight=float("nan")), "'b' must be a finite number"),
        (lambda: model.adapters.load(tmp_path / "task", "b", type="int8"), "type must be one of auto, f32, bf16"),
        (lambda: model.adapters.set("tusk"), r"no adapter 'tusk'; loaded: task; did you mean task\?"),
        (lambda: model.generate("a", adapters=["x"]), "there is no adapter 'x'"),
        (lambda: model.logits([1], {"task": "much"}), "weight of adapter 'task' must be a number, got 'much'"),
        (lambda: model.logits([1], {"task": True}), "weight of adapter 'task' must be a number, got True"),
        (lambda: model.adapters.set({"task": "1"}), "weight of adapter 'task' must be a number, got '1'"),
        (lambda: model.adapters.load(tmp_path / "task", "b", weight=10**400), "'b' must be a finite number"),
        (lambda: model.adapters.remove("b"), "there is no adapter 'b'"),
    ):
        with pytest.raises(GossamerError, match=words):
            call()
    assert model.adapters.weights == {"task": 1.0}


def test_targets_without_factors_and_another_base_are_told(
    model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = factors({module: shape for module, shape in MODULES.items() if "layers.0" in module}, 4)
    for name, base in (("same", "somebody/Base"), ("none", None), ("path", r"C:\models\base"), ("hub", BASE_IN_CACHE)):
        model.adapters.load(write_lora(tmp_path / name, made, base_model_name_or_path=base, layers_to_transform=[0]))
    assert not caplog.messages
    folder = write_lora(tmp_path / "task", made, base_model_name_or_path="somebody/other-base")
    model.adapters.load(folder)
    first = ", ".join(f"model.layers.1.self_attn.{name}_proj" for name in "qkv")
    assert caplog.messages == [
        f"{folder}: target_modules names {first} and 4 more, and there are no factors of them",
        f"{folder}: was trained beside somebody/other-base, and this is base",
    ]
    caplog.clear()
    convert(tmp_path / "base", tmp_path / "packed")
    gossamer.load(tmp_path / "packed").adapters.load(tmp_path / "hub")
    assert not caplog.messages


def test_an_adapter_of_zeros_adds_nothing(model: Model, tmp_path: Path) -> None:
    made = {module: (0 * b, a) for module, (b, a) in factors(MODULES, 4).items()}
    with pytest.raises(GossamerError, match="zero: the adapter adds nothing: all of it is zero"):
        model.adapters.load(write_lora(tmp_path / "zero", made))
    assert len(model.adapters) == 0


def test_engines_without_adapters_refuse_them(tmp_path: Path) -> None:
    with pytest.raises(GossamerError, match="adapters run on the processor, and the model runs on cpu"):
        fake_model().adapters.load(write_lora(tmp_path / "task", factors(MODULES, 4)))
    with pytest.raises(GossamerError, match="there is no adapter 'task'"):
        fake_model().generate("ab", adapters="task")


CASES: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
    "all": {"r": 6, "lora_alpha": 9, "target_modules": "all-linear", "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "down_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 2},
        "alpha_pattern": {"down_proj": 1},
        "layers_to_transform": [1],
    },
}


@pytest.mark.filterwarnings("ignore")  # peft and transformers warn of each other
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_peft_runs_the_same_model(family: str, case: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="peft's")
    transformers = pytest.importorskip("transformers", reason="peft's")
    peft = pytest.importorskip("peft", reason="the oracle")
    options = dict(CASES[case])
    tiny_llama(tmp_path / "base")
    if family == "gpt2":
        options |= {"fan_in_fan_out": True}
        if case != "all":
            options |= {"target_modules": ["c_attn", "c_fc"]}
        if case == "patterns":
            options |= {"rank_pattern": {"h.1.attn.c_attn": 2}, "alpha_pattern": {"c_fc": 1}}
        config = transformers.GPT2Config(vocab_size=320, n_positions=64, n_embd=48, n_layer=2, n_head=4)
        torch.manual_seed(0)
        transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    adapted = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **options)).eval()
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.15)
    adapted.save_pretrained(tmp_path / "task")
    ids = tokens(40)
    with torch.no_grad():
        expected = adapted(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].numpy()
        with adapted.disable_adapter():
            bare = adapted(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].numpy()
    model = gossamer.load(tmp_path / "base")
    model.adapters.load(tmp_path / "task")
    np.testing.assert_allclose(model.logits(ids), expected, atol=5e-4, rtol=0)
    np.testing.assert_allclose(model.logits(ids, {}), bare, atol=5e-4, rtol=0)
    assert np.abs(expected - bare).max() > 0.05
