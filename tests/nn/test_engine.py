"""The decoder of cards, run on the processor: against the native engine, and with the kernels as loops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossamer import GossamerError
from gossamer.checkpoints import open_checkpoint
from gossamer.cli import main
from gossamer.generation.model import Model
from gossamer.generation.ready import ready
from gossamer.gpu import cuda, roofline
from gossamer.loading import load
from gossamer.packing.convert import pack_checkpoint
from gossamer.packing.folder import PackedModel
from tiny import CASES, tiny_llama, tokens

torch = pytest.importorskip("torch", reason="the [torch] extra is not installed")
from gossamer.nn import engine as torch_engine  # noqa: E402
from gossamer.nn.engine import Engine  # noqa: E402
from gossamer.nn.linears import linear_of  # noqa: E402


def packed(folder: Path, weights: str = "stored", format: str = "auto", **options: Any) -> PackedModel:
    source = open_checkpoint(tiny_llama(folder, **{"sparsity": 0.5, **options}))
    return pack_checkpoint(source, weights=weights, format=format)


def on_processor(model: PackedModel, **options: Any) -> Engine:
    return Engine(model.config, model.weights, model.vectors, "cpu", **{"dtype": torch.float32, **options})


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks and caches that a few tokens fill."""
    monkeypatch.setattr(torch_engine, "_CHUNK", 8)
    monkeypatch.setattr(torch_engine, "_FIRST", 16)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_native_engine(tmp_path: Path, case: str) -> None:
    model = packed(tmp_path / "m", **CASES[case])
    ours, ids = on_processor(model), tokens()
    expected = ready(model, activations="f32").logits(ids)
    np.testing.assert_allclose(ours.step([(0, ids)], True), expected, rtol=0, atol=5e-4)
    singly = [ours.step([(1, ids[i : i + 1])])[0] for i in range(len(ids))]
    np.testing.assert_allclose(singly, expected, rtol=0, atol=5e-4)
    assert (ours.length(0), ours.length(1)) == (len(ids), len(ids))


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 3}])
def test_the_decode_loop_writes_the_same_text(tmp_path: Path, sampling: dict[str, Any]) -> None:
    model = packed(tmp_path / "m")
    native = ready(model, activations="f32")
    ours = Model(on_processor(model), model.config, model.tokenizer, model.info, model.weights, device="cuda")
    text = native.generate("The net", max_new_tokens=40, **sampling)
    assert ours.generate("The net", max_new_tokens=40, **sampling) == text
    assert ours.last_stats
    assert native.last_stats
    assert ours.last_stats.new_tokens == native.last_stats.new_tokens
    assert ours.last_stats.percent_of_roof is None


@pytest.mark.usefixtures("small_steps")
def test_sequences_side_by_side_rolled_back_and_forgotten(tmp_path: Path) -> None:
    ours, ids = on_processor(packed(tmp_path / "m")), tokens()
    expected = ours.step([(9, ids)], True)
    ours.free(9)
    ours.free(9)
    both = ours.step([(0, ids[:20]), (1, ids[:30])])
    np.testing.assert_allclose(both, expected[[19, 29]], rtol=0, atol=1e-4)
    ours.rollback(1, 25)
    assert ours.length(1) == 5
    np.testing.assert_allclose(ours.step([(1, ids[5:12])], True), expected[5:12], rtol=0, atol=1e-4)
    np.testing.assert_allclose(ours.step([(0, ids[20:21])]), expected[20:21], rtol=0, atol=1e-4)
    ours.free(0)
    assert (ours.length(0), ours.length(1)) == (0, 12)
    np.testing.assert_allclose(ours.step([(2, ids[:3])], True), expected[:3], rtol=0, atol=1e-4)


def test_what_does_not_fit_leaves_the_sequence_as_it_was(tmp_path: Path) -> None:
    ours = on_processor(packed(tmp_path / "m"))
    ours.step([(0, [3, 4])])
    for batch, words in [
        ([(0, [320])], "token 320 is not in the vocabulary of 320"),
        ([(0, [-1])], "token -1 is not in the vocabulary"),
        ([(0, [])], "at least one token"),
        ([(0, [3]), (0, [4])], "named twice"),
        ([(0, [3] * 127)], "129 tokens exceed the context of 128"),
    ]:
        with pytest.raises(ValueError, match=words):
            ours.step(batch)
    with pytest.raises(ValueError, match="cannot roll 3 tokens of 2 back"):
        ours.rollback(0, 3)
    assert ours.length(0) == 2


# --- with the kernels as loops ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "format", "options"),
    [
        ("bf16", "bitmap", {}),
        ("f16", "csr", {"tie_word_embeddings": True}),
        ("int8", "auto", {"attention_bias": True, "mlp_bias": True}),
        ("int4", "bitmap", {}),
    ],
)
def test_packed_products_are_as_exact_as_dense_ones(
    tmp_path: Path, weights: str, format: str, options: dict[str, Any]
) -> None:
    simt = pytest.importorskip("gossamer._simt", reason="needs an editable install, which builds the kernels as loops")
    model, ids = packed(tmp_path / "m", weights, format, **options), tokens(24)
    exact = on_processor(model).step([(0, ids)], True)
    ours = on_processor(model, dtype=None, kernels=simt)
    assert ours.dtype == (torch.float16 if weights == "f16" else torch.bfloat16)
    assert len(ours._network.projections) == 4 * model.config.layers + 1
    assert all(len(rows.parts) == 1 for rows in ours._network.projections)
    error = np.abs(ours.step([(0, ids)], True) - exact).max()
    dense = on_processor(model, dtype=ours.dtype, kernels=simt)
    for rows in dense._network.projections[:-1]:  # the same values, multiplied by torch
        object.__setattr__(rows, "parts", tuple(part.dense(ours.dtype) for part in rows.parts))
    allowed = np.abs(dense.step([(0, ids)], True) - exact).max()
    assert 0 < error <= 2 * allowed
    singly = np.concatenate([ours.step([(1, ids[i : i + 1])]) for i in range(len(ids))])
    assert np.abs(singly - exact).max() <= 2 * allowed
    per_token = sum(weight.nbytes for name, weight in model.weights.items() if name != "embed" or model.config.tied)
    assert 0.5 * per_token < ours.weight_bytes < 2 * per_token


def test_matrices_that_cannot_be_one_stay_several(tmp_path: Path) -> None:
    model = packed(tmp_path / "m", "bf16", "bitmap", head_dim=20, attention_bias=True)  # 40 rows of keys
    simt = pytest.importorskip("gossamer._simt", reason="needs an editable install, which builds the kernels as loops")
    names = [f"layers.0.{name}" for name in "qkv"]
    matrices = {name: model.weights[name] for name in names}
    rows = linear_of(names, model.weights, model.vectors, torch.device("cpu"), torch.bfloat16, simt)
    assert len(rows.parts) == 3
    x = torch.randn(3, 96, generator=torch.Generator().manual_seed(0)).bfloat16()
    stored = np.concatenate([matrices[name].unpack() for name in names])
    bias = np.concatenate([model.vectors[f"{name}.bias"] for name in names])
    exact = x.double().numpy() @ stored.T + bias
    size = np.abs(x.double().numpy()) @ np.abs(stored).T + np.abs(bias)
    assert (np.abs(rows(x)[0].double().numpy() - exact) <= 2.0**-7 * size).all()


def test_the_command_and_its_refusals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    simt = pytest.importorskip("gossamer._simt", reason="needs an editable install, which builds the kernels as loops")
    monkeypatch.setattr(cuda, "why_unavailable", lambda: None)
    monkeypatch.setattr(roofline, "_facts", lambda _: {"name": "A card", "multiprocessors": 132})

    def on_loops(config: Any, weights: Any, vectors: Any, device: str, **options: Any) -> Engine:
        assert device == "cuda"
        return Engine(config, weights, vectors, "cpu", kernels=simt, **options)

    monkeypatch.setattr(torch_engine, "Engine", on_loops)
    folder = str(tiny_llama(tmp_path / "m", sparsity=0.5))
    command = ["generate", "The net", "-m", folder, "-n", "5", "--device", "cuda", "--raw"]
    assert main(command) == 1
    assert "weight layers.0.q has f32 values, which a GPU does not multiply with bf16" in capsys.readouterr().err
    assert main([*command, "--weights", "bf16"]) == 0
    (tmp_path / "text").write_text("The net is thin and the net is quick. " * 3)
    evaluate = ["eval", folder, "--text", str(tmp_path / "text"), "--weights", "int8", "--context", "32", "--json"]
    found = []
    for options in ([], ["--device", "cuda"]):
        capsys.readouterr()
        assert main([*evaluate, *options]) == 0
        found.append(json.loads(capsys.readouterr().out)["perplexity"])
    assert found[1] == pytest.approx(found[0], rel=0.02)
    assert main([*command, "--weights", "bf16", "--activations", "a8"]) == 1
    assert "activations must be auto or bf16 on a GPU, got 'a8'" in capsys.readouterr().err
    model = load(folder, device="cuda", weights="int8")
    assert model.device == "cuda"
    kernels = dict(model.decoder.kernels())
    assert set(kernels) == set(model.weights) - {"embed"}
    assert set(kernels.values()) <= set(simt.kernels())
    capsys.readouterr()
    bench = ["bench", folder, "-p", "8", "-n", "4", "-r", "1", "--weights", "int8", "--device", "cuda"]
    assert main([*bench, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["kv"], document["weight_bytes"]) == ("bf16", model.decoder.weight_bytes)
    assert [row["test"] for row in document["rows"]] == ["pp8", "tg4"]
    with pytest.raises(SystemExit):
        main([*bench, "--threads", "2"])
    assert "argument --threads: not allowed with --device cuda" in capsys.readouterr().err
    chat = model.conversation()
    for text in ("The net", "and the thread"):
        assert "".join(chat.say(text, max_new_tokens=4))
    assert model.last_stats
    assert model.last_stats.reused_tokens > 0
    with pytest.raises(GossamerError, match="the prompt has 200 tokens"):
        model.logits([3] * 200)
