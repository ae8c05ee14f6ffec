"""What bench/fuzz.py does with an input: it opens it as users do, and, where that works, runs it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gossamer.errors import GossamerError
from gossamer.generation.model import Model
from gossamer.generation.sampling_options import SamplingOptions
from gossamer.loading import load
from gossamer.packing.folder import changed_files

if TYPE_CHECKING:
    import torch

TEXT = "The net 42 ü"
LAYERS: dict[str, dict[str, Any]] = {
    "bitmap": {"format": "bitmap"},
    "bf16": {"weights": "bf16", "format": "nm"},
    "csr": {"format": "csr", "weights": "int8"},
    "int4": {"format": "bitmap", "weights": "int4", "group": 32},
    "dense": {"format": "dense", "weights": "int8", "activations": "f32"},
    "trained": {"format": "bitmap", "trainable": True},
}
"""Options of the packed layers that saved torch models have."""


def prepare(kinds: list[str]) -> None:
    """Imports what inputs of these kinds need, which costs more than most of them."""
    if {"torch", "transformers"} & set(kinds):
        import torch

        import gossamer.torch

        assert gossamer.torch
        torch.set_num_threads(1)
    if "transformers" in kinds:
        from transformers import AutoModelForCausalLM, LlamaForCausalLM

        assert AutoModelForCausalLM
        assert LlamaForCausalLM


def use(kind: str, path: Path, rng: random.Random) -> None:
    """Opens and runs an input; whatever is wrong with it comes up as an exception."""
    if kind == "torch":
        _torch(path)
    elif kind == "transformers":
        _transformers(path)
    elif kind == "packed":
        _packed(path, rng)
    else:
        file = min(path.glob("*.gguf"), default=path)
        weights = rng.choice((None, "f32", "bf16", "f16", "int8", "int4"))
        _run(load(file, threads=1, kv=rng.choice(("f32", "f16")), weights=weights), rng)


def _packed(path: Path, rng: random.Random) -> None:
    refused = None
    try:
        changed_files(path)
    except GossamerError as error:
        refused = error  # the folder may be read all the same: checksums are looked at by request
    activations = rng.choice(("auto", "f32", "a8", "bf16"))
    _run(load(path, threads=rng.choice((1, 2)), activations=activations), rng)
    if refused:
        raise refused


def _run(model: Model, rng: random.Random) -> None:
    repr(model)
    count = rng.choice((1, 2, 5, 17))
    model.logits(np.arange(count) % model.config.vocab)
    options = SamplingOptions(max_new_tokens=3, temperature=rng.choice((0.0, 1.0)), stop=("x",))
    text = model.generate(TEXT, options, chat=False)
    text.encode()
    if model.tokenizer.has_chat_template:
        model.generate([{"role": "user", "content": TEXT}], max_new_tokens=2).encode()
    model.tokenizer.decode(list(range(model.tokenizer.vocab_size))).encode()


def torch_model() -> torch.nn.Module:
    """The model whose state is saved: three linear layers, half of whose values are zero."""
    import torch
    from torch import nn

    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 48, bias=False), nn.LayerNorm(48), nn.Linear(48, 33)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                groups = parameter.view(-1, 4)
                groups.scatter_(1, groups.abs().argsort(1)[:, :2], 0)
    return model


def _torch(path: Path) -> None:
    import torch

    import gossamer.torch

    model = gossamer.torch.load(torch_model(), path / "model.safetensors")
    for count, dtype in ((1, torch.float32), (5, torch.float32)):
        model(torch.ones(count, 64, dtype=dtype)).sum().backward()
    gossamer.torch.desparsify(model)
    with torch.no_grad():
        model(torch.ones(2, 64))


def _transformers(path: Path) -> None:
    import torch
    import transformers

    import gossamer.torch

    assert gossamer.torch
    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        model(torch.arange(3, 9)[None])
