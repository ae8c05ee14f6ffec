"""`save_pretrained` and `from_pretrained` of transformers with packed layers."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from gossamer import GossamerError  # noqa: E402
from gossamer.torch import SparseLinear, desparsify, load_state_dict, prune_linears, sparsify  # noqa: E402

TOKENS = torch.arange(3, 21).view(2, 9)
SIZES = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
PROGRAM = """
import sys
{imports}
import torch
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
torch.save(model(torch.arange(3, 21).view(2, 9)).logits, sys.argv[2])
"""


def llama(seed: int = 0, **config: Any) -> nn.Module:
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **config)).eval()
    prune_linears(model, method="magnitude", sparsity=0.6)
    return model


def packed(**options: Any) -> nn.Module:
    model = llama()
    assert len(sparsify(model, **{"format": "bitmap", "exclude": "lm_head", **options}).packed) == 14
    return model


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(TOKENS)[0]


def count(model: nn.Module) -> int:
    return sum(isinstance(module, SparseLinear) for module in model.modules())


def change(path: Path, change_one: Any) -> None:
    config = json.loads(path.read_text())
    change_one(config["quantization_config"])
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    "options", [{}, {"weights": "int8"}, {"weights": "int4", "group": 32}, {"trainable": True}, {"activations": "bf16"}]
)
@pytest.mark.parametrize("shard", ["50GB", "20KB"])
def test_a_loaded_model_gives_the_same(tmp_path: Path, options: dict[str, Any], shard: str) -> None:
    model = packed(**options)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert ((tmp_path / "model.safetensors.index.json").exists()) == (shard != "50GB")
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert count(loaded) == 14
    assert torch.equal(logits(loaded), logits(model))
    layer = loaded.model.layers[1].mlp.up_proj
    assert layer.layout == model.model.layers[1].mlp.up_proj.layout
    assert (layer.name, layer.trainable, layer.training) == (
        "model.layers.1.mlp.up_proj",
        "trainable" in options,
        False,
    )


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "t5", "clip"])
def test_other_families(tmp_path: Path, family: str) -> None:
    from torch_models import inputs, outputs, pruned

    model = pruned(family, "2:4")
    sparsify(model, format="nm")
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert count(loaded) == count(model) > 0
    for y, z in zip(outputs(loaded, inputs(family)), outputs(model, inputs(family)), strict=True):
        assert torch.equal(y, z)
    assert desparsify(loaded) == count(model)
    dense = {name: type(module) for name, module in loaded.named_modules()}
    assert dense == {name: type(module) for name, module in pruned(family, "2:4").named_modules()}


def test_tied_embeddings_in_bfloat16_write_the_same_text(tmp_path: Path) -> None:
    model = llama(tie_word_embeddings=True).bfloat16()
    sparsify(model, format="bitmap")
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(loaded.generate(TOKENS, **options), model.generate(TOKENS, **options))
    wider = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert wider.model.layers[0].mlp.up_proj.layout.type == "bf16"
    dense = copy.deepcopy(wider)
    assert desparsify(dense) == 14
    assert dense.model.layers[0].mlp.up_proj.weight.dtype == torch.float32
    torch.testing.assert_close(logits(wider), logits(dense), rtol=1e-4, atol=1e-5)


def test_heads_come_and_go(tmp_path: Path) -> None:
    model = packed(exclude=None, include="*layers*")
    model.save_pretrained(tmp_path / "head")
    with torch.no_grad():
        wanted = model.model(TOKENS)[0]
    base = transformers.AutoModel.from_pretrained(tmp_path / "head")
    assert count(base) == 14
    assert torch.equal(logits(base), wanted)
    base.save_pretrained(tmp_path / "base")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert count(again) == 14
    with torch.no_grad():
        assert torch.equal(again.model(TOKENS)[0], wanted)


def test_a_packed_head_is_left_out_with_its_part(tmp_path: Path) -> None:
    model = llama()
    assert len(sparsify(model, format="bitmap", weights="int8").packed) == 15
    model.save_pretrained(tmp_path)
    base = transformers.AutoModel.from_pretrained(tmp_path)
    assert count(base) == 14
    with torch.no_grad():
        assert torch.equal(base(TOKENS)[0], model.model(TOKENS)[0])


def part(model: nn.Module) -> None:
    sparsify(model.model, format="bitmap")


def list_of_blocks(model: nn.Module) -> None:
    sparsify(model.model.layers, format="bitmap")


def by_hand(model: nn.Module) -> None:
    mlp = model.model.layers[0].mlp
    mlp.up_proj = SparseLinear.from_dense(mlp.up_proj)


def by_state(model: nn.Module) -> None:
    load_state_dict(model, packed().state_dict())


@pytest.mark.parametrize("pack", [part, list_of_blocks, by_hand, by_state])
def test_whatever_packed_a_layer_it_is_saved(tmp_path: Path, pack: Any) -> None:
    model = llama()
    pack(model)
    assert count(model) == (1 if pack is by_hand else 14)
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert count(loaded) == count(model)
    assert torch.equal(logits(loaded), logits(model))


def test_saving_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = packed()
    before = set(model.__dict__), model.config.to_dict()
    model.save_pretrained(tmp_path / "a")
    for key in ("dtype", "architectures"):  # which transformers notes
        before[1][key] = model.config.to_dict()[key]
    assert (set(model.__dict__), model.config.to_dict()) == before
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert not hasattr(loaded.config, "quantization_config")
    assert loaded.half().dtype == torch.float16  # which transformers refuses for models that it takes for quantized
    copy.deepcopy(loaded).save_pretrained(tmp_path / "b")
    assert count(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b")) == 14


def test_a_model_that_is_dense_again_is_saved_dense(tmp_path: Path) -> None:
    packed().save_pretrained(tmp_path / "packed")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    desparsify(model)
    model.save_pretrained(tmp_path / "dense")
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert count(loaded) == 0
    assert torch.equal(logits(loaded), logits(llama()))


def test_a_state_that_is_given_is_what_is_saved(tmp_path: Path) -> None:
    model, other = packed(), llama(seed=1)
    sparsify(other, format="bitmap", exclude="lm_head")
    model.save_pretrained(tmp_path, state_dict=other.state_dict())
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), logits(other))


@pytest.mark.parametrize(
    ("name", "imports"),
    [
        (
            "before",
            (
                "import gossamer.torch\nassert 'transformers' not in sys.modules\nimport importlib.util\n"
                "assert importlib.util.find_spec('transformers.modeling_utils')\nimport transformers"
            ),
        ),
        ("never", "import transformers"),
    ],
)
def test_another_process_loads_it_with_this_package_and_fails_without(tmp_path: Path, name: str, imports: str) -> None:
    model = packed()
    model.save_pretrained(tmp_path)
    command = [sys.executable, "-c", PROGRAM.format(imports=imports), str(tmp_path), str(tmp_path / "out.pt")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    if name == "never":
        assert done.returncode != 0
        assert "got gossamer" in done.stderr
        assert "model.layers.{0, 1}.mlp.up_proj.weight" in done.stderr
        assert "MISMATCH" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert torch.equal(torch.load(tmp_path / "out.pt"), logits(model))


UP = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda c: c.update(version=2), "version 2 is nothing that this version of gossamer knows"),
        (lambda c: c.update(secret=True), "secret is nothing that"),
        (lambda c: c.update(layers=[1]), "layers must be an object"),
        (lambda c: c["layers"][UP].update(layout="1 1 0 8 8 0 0 0 0"), "the saved layer is 8 x 8, the model's 96 x 64"),
        (lambda c: c["layers"][UP].update(layout="1 1 0 96 64 0 0 0 1"), "the stored layout is not that"),
        (lambda c: c["layers"][UP].update(layout=[1]), "layers.0.mlp.up_proj.*split"),
        (lambda c: c["layers"][UP]["streams"].update(masks="768 5"), "stream 'masks' is not what was saved"),
        (lambda c: c["layers"][UP]["streams"].update(masks=""), "layers.0.mlp.up_proj"),
        (lambda c: c["layers"][UP].pop("streams"), "streams"),
        (lambda c: c["layers"].update({"model.layers.7.mlp.up_proj": c["layers"].pop(UP)}), "layers.7.* has none"),
        (lambda c: c["layers"].update({"model.norm": c["layers"].pop(UP)}), "the model has a LlamaRMSNorm"),
    ],
)
def test_a_config_that_does_not_fit_is_one_clear_line(tmp_path: Path, damage: Any, words: str) -> None:
    packed().save_pretrained(tmp_path)
    change(tmp_path / "config.json", damage)
    with pytest.raises(GossamerError, match=words) as raised:
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("stream", ["values", "masks", "offsets"])
def test_a_stream_that_is_missing_or_of_another_model_is_told(tmp_path: Path, stream: str) -> None:
    packed().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    whole = dict(tensors)
    del tensors[f"{UP}.{stream}"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(GossamerError, match=f"{UP}: stream '{stream}' is not what was saved, or missing"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    whole[f"{UP}.{stream}"] = whole[f"{UP}.{stream}"].flip(0)
    save_file(whole, file, {"format": "pt"})
    with pytest.raises(GossamerError, match=f"{UP}: stream '{stream}' is not what was saved, or missing"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_dense_model_is_not_packed_by_loading_it(tmp_path: Path) -> None:
    from gossamer.torch.quantizer import GossamerConfig

    llama().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does require the model to be pre-quantized"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=GossamerConfig())


def test_a_dense_model_made_of_a_packed_ones_config_is_saved_dense(tmp_path: Path) -> None:
    packed().save_pretrained(tmp_path / "packed")
    model = transformers.LlamaForCausalLM(transformers.AutoConfig.from_pretrained(tmp_path / "packed")).eval()
    model.save_pretrained(tmp_path / "dense")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert torch.equal(logits(loaded), logits(model))


PARTS = ("model.embed_tokens", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head")


@pytest.mark.parametrize("where", ["cpu", {"model.layers.0": "disk", **dict.fromkeys(PARTS, "cpu")}])
@pytest.mark.filterwarnings("ignore")  # of accelerate
def test_a_device_map_is_followed(tmp_path: Path, where: Any) -> None:
    pytest.importorskip("accelerate")
    model = packed()
    model.save_pretrained(tmp_path / "model")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=where, offload_folder=str(tmp_path / "offloaded")
    )
    assert torch.equal(logits(loaded), logits(model))


def test_a_trainer_trains_saves_and_loads_it(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    model = packed(trainable=True)
    before = model.model.layers[0].mlp.up_proj.values.detach().clone()
    options = {"max_steps": 2, "save_steps": 2, "learning_rate": 1e-2, "report_to": [], "use_cpu": True}
    arguments = transformers.TrainingArguments(str(tmp_path), disable_tqdm=True, **options)
    data = [{"input_ids": row, "labels": row} for row in TOKENS]
    transformers.Trainer(model, arguments, train_dataset=data).train()
    assert not torch.equal(model.model.layers[0].mlp.up_proj.values, before)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-2")
    assert torch.equal(logits(loaded), logits(model.eval()))
