"""Checkpoints as the tools themselves write them: `python tests/support/real_tools.py TOOL OUT`.

Run in an environment that has the tool (and torch and transformers, not gossamer). OUT becomes a zip of a folder for
each form: the checkpoint, and in `expected.safetensors` the weights that it stands for by the tool's own arithmetic and
the logits of the dense model of those. `forms.json` says which release wrote it. With --every all weights are there, in
fixtures one matrix. Weights are seeded and random. The tests are in `tests/checkpoints/test_real_tools.py`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SHOWN = "layers.0.self_attn.k_proj.weight"
IDS = [(11 * i + 3) % 32 for i in range(12)]
# Of releases that write much of the same, the forms that fixtures have.
FIXTURES = {
    "compressed-tensors-0.8.1": ("sparse-bitmask-int8", "pack-int4-asymmetric"),
    "compressed-tensors-0.9.4": ("sparse-24-bitmask-int8", "sparse-24-bitmask-fp8"),
    "compressed-tensors-0.14.0.1": ("sparse-bitmask-bf16", "marlin-24-int4", "pack-int4-order"),
    "llmcompressor-0.14.0.1": ("mxfp4a16", "nvfp4a16", "w4a16-asymmetric-order"),
}
Write = Callable[[Path], None]


@dataclass(frozen=True)
class Made:
    """A checkpoint.

    Attributes:
        name: Of its form.
        model: Whose config it has.
        write: Writes it into a folder.
        weights: What it stands for, by the tool's arithmetic.
    """

    name: str
    model: LlamaForCausalLM
    write: Write
    weights: dict[str, Tensor]


def llama(dtype: torch.dtype = torch.float32, pattern: str = "", **sizes: int) -> LlamaForCausalLM:
    """A tiny model; pattern: zeros of its linears, "2:4" or "unstructured"."""
    torch.manual_seed(5)
    config = LlamaConfig(
        **{
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "vocab_size": 32,
            "max_position_embeddings": 64,
            "initializer_range": 0.2,
            "tie_word_embeddings": True,
            **sizes,
        }
    )
    model = LlamaForCausalLM(config).eval()
    for name, weight in model.named_parameters():
        weight.requires_grad_(False)
        if "norm" in name:
            weight.uniform_(0.5, 1.5)
        if pattern and "_proj" in name:
            length = 4 if pattern == "2:4" else weight.shape[1]
            groups = weight.view(len(weight), -1, length)
            groups[groups.abs().argsort(2).argsort(2) < length // 2] = 0
    return model.to(dtype)


def logits(model: LlamaForCausalLM, weights: dict[str, Tensor]) -> Tensor:
    """Of the dense model that has these weights instead of its own, in float32."""
    dense = LlamaForCausalLM(LlamaConfig(**model.config.to_dict() | {"quantization_config": None})).eval()
    missing = dense.load_state_dict({name: values.float() for name, values in weights.items()}, strict=False)
    assert not missing.unexpected_keys
    assert set(missing.missing_keys) <= {"lm_head.weight"}
    with torch.no_grad():
        return dense(torch.tensor([IDS])).logits[0]


def plain(model: LlamaForCausalLM) -> dict[str, Tensor]:
    """The weights of a model, cloned."""
    return {name: values.detach().clone() for name, values in model.named_parameters() if "_proj.weight_" not in name}


# --- compressed-tensors, driven by itself -----------------------------------------------------------------------------


def quantize(model: LlamaForCausalLM, form: str, targets: list[str], **weights: Any) -> dict[str, Tensor]:
    """Gives linears scales as an observer of smallest and largest values does; returns what they then stand for."""
    made = importlib.import_module("compressed_tensors.quantization")
    calculate = importlib.import_module("compressed_tensors.quantization.utils").calculate_qparams
    fake = importlib.import_module("compressed_tensors.quantization.lifecycle.forward").fake_quantize
    args = made.QuantizationArgs(**weights)
    scheme = made.QuantizationScheme(targets=targets, weights=args)
    config = made.QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"], format=form)
    dense = plain(model)
    made.apply_quantization_config(model, config)
    for name, module in model.named_modules():
        if not getattr(module, "quantization_scheme", None):
            continue
        weight, g_idx = module.weight, getattr(module, "weight_g_idx", None)
        cols = weight.shape[1]
        ordered = weight
        if g_idx is not None:
            mixed = torch.randperm(cols, generator=torch.Generator().manual_seed(1))
            g_idx[mixed] = (torch.arange(cols) // args.group_size).to(g_idx.dtype)
            ordered = weight[:, mixed]
        strategy = str(getattr(args.strategy, "value", args.strategy))
        length = {"tensor": weight.numel(), "channel": cols, "group": args.group_size}[strategy]
        groups = ordered.reshape(1 if strategy == "tensor" else len(weight), -1, length)
        scale, zero = calculate(groups.amin(2), groups.amax(2), args)
        module.weight_scale.copy_(scale.view(module.weight_scale.shape))
        point = getattr(module, "weight_zero_point", None)
        if point is not None:
            point.copy_(zero.view(point.shape))
        dense[f"{name}.weight"] = fake(weight, module.weight_scale, point, args, g_idx)
    return dense


def forget(model: LlamaForCausalLM, weights: dict[str, Tensor]) -> None:
    """Makes zero what sparse-24-bitmask loses: it keeps the largest two by an 8-bit size, which -128 has not."""
    mask_of = importlib.import_module("compressed_tensors.compressors.sparse_compressors.sparse_24_bitmask")
    lifecycle = importlib.import_module("compressed_tensors.quantization.lifecycle.forward")
    for name, module in model.named_modules():
        if scheme := getattr(module, "quantization_scheme", None):
            whole = lifecycle.quantize(module.weight, module.weight_scale, None, scheme.weights, dtype=torch.int8)
            weights[f"{name}.weight"] *= mask_of.get_24_bytemasks(whole)


def compressed(model: LlamaForCausalLM, form: str, sparsity: dict[str, Any] | None = None) -> Write:
    """How ModelCompressor writes a model: the order of calls that its documentation gives."""
    base = importlib.import_module("compressed_tensors.config")
    compressors = importlib.import_module("compressed_tensors.compressors")
    config = None
    if sparsity:
        config = base.SparsityCompressionConfig.load_from_registry(sparsity["format"], **sparsity)
    compressor = compressors.ModelCompressor.from_pretrained_model(
        model, sparsity_config=config, quantization_format=form or None
    )
    kept = {name: values for name, values in model.state_dict().items() if name != "lm_head.weight"}  # is tied
    state = compressor.compress(model, kept)

    def write(folder: Path) -> None:
        save_file({name: values.contiguous() for name, values in state.items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(model.config.to_dict()))
        compressor.update_config(str(folder))

    return write


def compressed_tensors(release: str, every: bool) -> Iterator[Made]:
    """The forms that a release from before 0.15 writes."""
    old = release.startswith("0.8")
    linears = ["re:.*_proj"]

    def made(name: str, form: str, sparsity: str, pattern: str = "", **more: Any) -> Made:
        dtype, sizes, targets = more.pop("dtype", torch.bfloat16), more.pop("sizes", {}), more.pop("targets", linears)
        model = llama(dtype, pattern, **sizes)
        weights = quantize(model, form, targets, **more) if form else plain(model)
        if form == "int-quantized" and sparsity == "sparse-24-bitmask":
            forget(model, weights)
        said = {"sparsity_structure": pattern, "global_sparsity": 0.4, "targets": ["Linear"], "ignore": ["lm_head"]}
        if old:
            said = {key: said[key] for key in ("sparsity_structure", "global_sparsity")}
        write = compressed(model, form, {"format": sparsity, **said} if sparsity else None)
        return Made(name, model, write, weights)

    int8 = {"num_bits": 8, "strategy": "channel"}
    fp8 = {"num_bits": 8, "type": "float", "strategy": "channel"}
    yield made("sparse-bitmask-bf16", "", "sparse-bitmask", "unstructured")
    yield made("sparse-bitmask-int8", "int-quantized", "sparse-bitmask", "unstructured", **int8)
    if not old:
        yield made("sparse-24-bitmask-bf16", "", "sparse-24-bitmask", "2:4")
        yield made("sparse-24-bitmask-int8", "int-quantized", "sparse-24-bitmask", "2:4", **int8)
        yield made("sparse-24-bitmask-fp8", "float-quantized", "sparse-24-bitmask", "2:4", **fp8)
    sizes = {"hidden_size": 64, "num_key_value_heads": 2, "intermediate_size": 64}
    half = {"dtype": torch.float16, "sizes": sizes, "pattern": "2:4"}
    yield made("marlin-24-int4", "marlin-24", "", **half, num_bits=4, strategy="channel")
    if every:
        sizes = {"hidden_size": 256, "num_key_value_heads": 2, "intermediate_size": 384}
        for bits in (4, 8):
            group = {"num_bits": bits, "strategy": "group", "group_size": 128}
            yield made(f"marlin-24-int{bits}-group", "marlin-24", "", **half | {"sizes": sizes}, **group)
    packed = {"num_bits": 4, "strategy": "group", "group_size": 16}
    yield made("pack-int4-asymmetric", "pack-quantized", "", **packed, symmetric=False)
    yield made("pack-int4-order", "pack-quantized", "", **packed, actorder="group")
    yield made("pack-int8", "pack-quantized", "", "unstructured", num_bits=8, strategy="tensor")
    yield made("naive-fp8", "naive-quantized", "", **fp8 | {"strategy": "tensor"}, dtype=torch.float32)
    if every:
        yield made(
            "naive-int3", "naive-quantized", "", num_bits=3, strategy="group", group_size=16, dtype=torch.float32
        )


# --- llmcompressor ----------------------------------------------------------------------------------------------------


def loaded(model: LlamaForCausalLM, **more: Any) -> LlamaForCausalLM:
    """A model as read from a folder, which some tools ask for and come back to."""
    folder = Path(tempfile.gettempdir()) / "dense"
    model.save_pretrained(folder)
    return LlamaForCausalLM.from_pretrained(folder, dtype=model.dtype, **more)


def llmcompressor(_: str, every: bool) -> Iterator[Made]:
    """What `oneshot` and `save_pretrained` write."""
    oneshot = importlib.import_module("llmcompressor").oneshot
    modifiers = importlib.import_module("llmcompressor.modifiers.quantization")
    fake = importlib.import_module("compressed_tensors.quantization.lifecycle.forward").fake_quantize

    def made(
        name: str, modifier: str = "QuantizationModifier", sizes: dict[str, int] | None = None, **how: Any
    ) -> Made:
        model = loaded(llama(torch.bfloat16, **sizes or {"intermediate_size": 64}))
        more: dict[str, Any] = {}
        if modifier == "GPTQModifier":
            rows = torch.randint(0, 32, (16, 24), generator=torch.Generator().manual_seed(2))
            more["dataset"] = torch.utils.data.DataLoader([{"input_ids": row} for row in rows], batch_size=4)
            words = importlib.import_module("tokenizers").Tokenizer(
                importlib.import_module("tokenizers.models").WordLevel({"a": 0}, unk_token="a")
            )
            more["processor"] = PreTrainedTokenizerFast(tokenizer_object=words)  # asked for, and not used
        recipe = getattr(modifiers, modifier)(ignore=["lm_head"], **how)
        oneshot(model=model, recipe=[recipe], **more)
        weights = {key.replace("._orig_mod", ""): values for key, values in plain(model).items()}
        for key, module in model.named_modules():
            if scheme := getattr(module, "quantization_scheme", None):
                whole = getattr(module, "weight_global_scale", None)
                point = getattr(module, "weight_zero_point", None)
                weights[f"{key}.weight"] = fake(module.weight, module.weight_scale, point, scheme.weights, whole)

        return Made(name, model, model.save_pretrained, weights)

    def groups(**weights: Any) -> dict[str, Any]:
        return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}

    small = ("W8A8", "MXFP4A16", "NVFP4A16")
    for scheme in small:
        yield made(scheme.lower(), targets="Linear", scheme=scheme)
    order = groups(num_bits=4, strategy="group", group_size=16, symmetric=False, actorder="weight")
    yield made("w4a16-asymmetric-order", "GPTQModifier", **order)
    if every:
        sizes = {"hidden_size": 128, "intermediate_size": 256}
        for scheme in (*small, "W4A16", "W4A16_ASYM", "W3A16", "W8A16", "FP8_DYNAMIC", "FP8_BLOCK", "MXFP8A16"):
            yield made(f"{scheme.lower()}-large", sizes=sizes, targets="Linear", scheme=scheme)
        for group in (64, 32):
            weights = groups(num_bits=4, strategy="group", group_size=group)
            yield made(f"w4a16-group-{group}", sizes=sizes, **weights)
            yield made(
                f"w4a16-group-{group}-static-order", "GPTQModifier", sizes=sizes, **weights | {"actorder": "weight"}
            )


# --- tools that transformers asks -------------------------------------------------------------------------------------


def bitsandbytes(_: str, every: bool) -> Iterator[Made]:
    """What `save_pretrained` writes of models that were quantized on the way in."""
    config = importlib.import_module("transformers").BitsAndBytesConfig
    functional = importlib.import_module("bitsandbytes.functional")

    def made(name: str, dtype: torch.dtype = torch.bfloat16, **how: Any) -> Made:
        # Rows of whole blocks of 64: on CPUs, the tool's own reader has others wrong.
        sizes = {"hidden_size": 64, "intermediate_size": 64} if "load_in_4bit" in how else {}
        model = loaded(llama(dtype, **sizes), quantization_config=config(**how), device_map="cpu")
        weights = plain(model)
        for key, module in model.named_modules():
            weight = getattr(module, "weight", None)
            if (state := getattr(weight, "quant_state", None)) is not None:
                weights[f"{key}.weight"] = functional.dequantize_4bit(weight.data, state).view(*state.shape)
            elif (largest := getattr(weight, "SCB", None)) is not None:
                weights[f"{key}.weight"] = functional.int8_vectorwise_dequant(weight.data, largest)
        return Made(name, model, model.save_pretrained, weights)

    yield made("int8", load_in_8bit=True)
    yield made("nf4-nested", load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    if every:
        for kind in ("nf4", "fp4"):
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                yield made(f"{kind}-{dtype}", dtype, load_in_4bit=True, bnb_4bit_quant_type=kind)


def torchao(_: str, every: bool) -> Iterator[Made]:
    """The same of torchao's tensors, flattened into safetensors."""
    config = importlib.import_module("transformers").TorchAoConfig
    kinds = importlib.import_module("torchao.quantization")

    def made(name: str, kind: str, dtype: torch.dtype = torch.bfloat16, **how: Any) -> Made:
        model = loaded(llama(dtype), quantization_config=config(getattr(kinds, kind)(**how)), device_map="cpu")
        weights = plain(model)
        weights |= {key: values.dequantize() for key, values in weights.items() if type(values) is not Tensor}
        return Made(name, model, model.save_pretrained, weights)

    yield made("int8", "Int8WeightOnlyConfig", version=2)
    if every:
        yield made("float8", "Float8WeightOnlyConfig")
        yield made("int4-in-int8", "IntxWeightOnlyConfig", weight_dtype=torch.int4)
        yield made("int8-f32", "Int8WeightOnlyConfig", torch.float32, version=2)
        yield made("int8-dynamic", "Int8DynamicActivationInt8WeightConfig", version=2)


TOOLS = {
    "compressed-tensors": compressed_tensors,
    "llmcompressor": llmcompressor,
    "bitsandbytes": bitsandbytes,
    "torchao": torchao,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--every", action="store_true", help="all weights, and forms that are too large for fixtures")
    args = parser.parse_args()
    release = importlib.metadata.version(args.tool)
    with tempfile.TemporaryDirectory() as temporary:
        tempfile.tempdir = temporary
        root, forms = Path(temporary) / "forms", []
        root.mkdir()
        for made in TOOLS[args.tool](release, args.every):
            if not args.every and made.name not in FIXTURES.get(f"{args.tool}-{release}", (made.name,)):
                continue
            folder = root / made.name
            folder.mkdir()
            made.write(folder)
            shown = {key: values for key, values in made.weights.items() if args.every or key.endswith(SHOWN)}
            expected = {key: values.contiguous() for key, values in shown.items()}
            save_file(expected | {"logits": logits(made.model, made.weights)}, folder / "expected.safetensors")
            forms.append(made.name)
        said = {"tool": args.tool, "release": release, "torch": torch.__version__, "ids": IDS, "forms": forms}
        (root / "forms.json").write_text(json.dumps(said))
        with zipfile.ZipFile(args.out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for path in sorted(root.rglob("*")):
                if path.is_file():
                    archive.writestr(zipfile.ZipInfo(str(path.relative_to(root))), path.read_bytes(), 8, 9)


if __name__ == "__main__":
    main()
