"""What every family has to do, as checks of tiny seeded models of transformers: whoever has a config calls them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import gossamer
from gossamer import arch
from gossamer.arch.spec import Transformer
from gossamer.checkpoints import open_checkpoint
from gossamer.errors import GossamerError
from gossamer.finetune.options import Options
from gossamer.finetune.pipeline import finetune
from gossamer.generation.perplexity import perplexity
from gossamer.nn import decoder as trained
from gossamer.pruning import prune
from reference_model import ReferenceModel

Config = dict[str, Any]
VOCAB = 320


def theirs(folder: Path, ids: Any) -> Any:
    """Logits of transformers in float64, [tokens, vocab]."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").double().eval()
    with torch.no_grad():
        return model(torch.from_numpy(ids)[None], use_cache=False).logits[0].numpy()


def tokens(count: int) -> Any:
    return np.random.default_rng(0).integers(0, VOCAB, count)


def read(folder: Path) -> tuple[Transformer, dict[str, Any]]:
    """The description of a checkpoint, and its tensors by canonical name."""
    checkpoint = open_checkpoint(folder)
    described, sources = arch.family(checkpoint.config).describe(checkpoint.config), checkpoint.sources()
    assert list(sources) == list(described.tensors)
    return described, {name: checkpoint.read(source) for name, source in sources.items()}


def near(actual: Any, expected: Any, within: float = 1e-6) -> None:
    """Asserts that logits are others' within a share of the largest; tables and norms are float32 in transformers."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=within * np.abs(expected).max())


def check_description(folder: Path, length: int) -> None:
    described, values = read(folder)
    assert {name: value.shape for name, value in values.items()} == described.tensors
    ids = tokens(length)
    near(ReferenceModel(described, values).logits(ids), theirs(folder, ids))


def check_named(config: Config, words: str) -> None:
    """A config that cannot be described: the line says why."""
    with pytest.raises(GossamerError) as error:
        arch.family(config).describe(config)
    assert words in str(error.value)


def check_pruned_go_back(folder: Path, pruned: Path) -> None:
    prune(folder, pruned, method="magnitude", sparsity=0.5)
    described, values = read(pruned)
    assert all(0.48 < (values[name] == 0).mean() < 0.52 for name in described.linears)
    ids = tokens(20)
    near(ReferenceModel(described, values).logits(ids), theirs(pruned, ids))
    report = json.loads((pruned / "gossamer_prune.json").read_text())
    assert len(report["layers"]) == len(described.linears)


def check_engine(folder: Path, length: int) -> None:
    """A prompt, single tokens behind it, and sequences of other lengths beside."""
    model = gossamer.load(folder, activations="f32")
    ids, other = tokens(length), tokens(length)[::-1].copy()
    cut = length - 10
    found = [model.decoder.step([(0, ids[:cut])], all_logits=True)]
    for at in range(cut, length):
        beside = [(3, other[2 * (at - cut) :][: 1 + at % 2])]  # whatever the tokens are
        found.append(model.decoder.step([(0, ids[at : at + 1]), *beside], all_logits=True)[:1])
    near(np.concatenate(found), theirs(folder, ids), 5e-5)
    both = model.decoder.step([(7, other[: length // 2]), (8, ids)], all_logits=True)
    np.testing.assert_array_equal(both[length // 2 :], np.concatenate(found))
    near(both[: length // 2], theirs(folder, other[: length // 2]), 5e-5)


def check_trains(folder: Path, length: int) -> None:
    """The torch decoder has their logits, and gradients for all that it has."""
    model, ids = trained.load(folder), tokens(length)
    logits = model(torch.from_numpy(ids)[None]).logits
    assert logits is not None
    near(logits[0].detach().numpy(), theirs(folder, ids), 5e-5)
    logits.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def check_finetunes(folder: Path, work: Path) -> None:
    """Some steps on a pruned one: zeros stay, all else moves, and transformers has the logits of what is written."""
    prune(folder, work / "pruned", method="magnitude", sparsity=0.5)
    (work / "text.txt").write_text("The spider spins a thread of gossamer, and the thread holds the spider.\n\n" * 9)
    quick = {"length": 32, "batch": 2, "tokens": 640, "precision": "f32", "validations": 1, "threads": 1}
    options = Options(**quick)
    report = finetune(work / "pruned", work / "out", teacher=folder, data=[work / "text.txt"], options=options)
    assert report.steps == 10
    (described, before), (_, after) = read(work / "pruned"), read(work / "out")
    for name in described.linears:
        assert (after[name][before[name] == 0] == 0).all(), name
        assert (after[name] != before[name]).any(), name
    ids = tokens(30)
    near(ReferenceModel(described, after).logits(ids), theirs(work / "out", ids))


def check_pruned_packed_and_run(folder: Path, work: Path, pattern: tuple[int, int] | None) -> None:
    zeros: dict[str, Any] = {"pattern": pattern} if pattern else {"sparsity": 0.5}
    (work / "text.txt").write_text("The spider spins a thread of gossamer. " * 60)
    calibration = {"calibration": work / "text.txt", "windows": 8, "length": 32}
    report = prune(folder, work / "pruned", method="sparsegpt", **zeros, **calibration)
    assert abs(report.reached - 0.5) < 0.01
    ids = tokens(20)
    gossamer.convert(work / "pruned", work / "packed", weights="f32")
    model = gossamer.load(work / "packed", activations="f32")
    near(model.decoder.step([(0, ids)], all_logits=True), theirs(work / "pruned", ids), 5e-5)
    assert isinstance(model.generate("The spider", chat=False, max_new_tokens=5), str)
    assert 1 < perplexity(model, "The thread holds the spider. " * 9, context=32).ppl < 1e6
