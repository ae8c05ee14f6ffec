"""Decoders that read an encoder: both are pruned on pairs, the decoder on the pruned encoder's states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossamer import arch
from gossamer.arch.relative import relative_bias
from gossamer.arch.spec import Attention, Block, Branch, Embedding, Head, Mlp, Norm, Stack, Transformer, attention_scale
from gossamer.checkpoints import open_checkpoint
from gossamer.errors import GossamerError
from gossamer.generation.pairs import pairing
from gossamer.pruning import Target, prune
from gossamer.pruning.methods.wanda import importance, keep_important
from gossamer.pruning.sensitivity import Probe, probed
from gossamer.pruning.walk import Texts
from gossamer.text.tasks import TaskSample
from pruned_blocks import pruned_blocks
from reference_model import ReferenceModel, random_tensors

VOCAB, HIDDEN = 50, 24
HALF = Target(0.5)


def attention(**changes: Any) -> Attention:
    return Attention(2, 2, 12, attention_scale(12), None, **changes)


def described() -> Transformer:
    norm, mlp = Norm("rms", 1e-5), Mlp(32, "silu", gated=True)
    ahead = Attention(2, 2, 12, 1.0, relative_bias(8, 20, causal=False), causal=False)
    sides = ([ahead, mlp], [attention(), attention(causal=False, reads="memory"), mlp])
    inner, outer = (Stack((Block(tuple(Branch(one, norm) for one in side)),), (0, 0), norm) for side in sides)
    encoder = Transformer(HIDDEN, VOCAB, 64, Embedding(shared=True), inner, None)
    return Transformer(HIDDEN, VOCAB, 64, Embedding(), outer, Head(tied=True), encoder)


MODEL = described()
TENSORS = random_tensors(MODEL)


def texts() -> list[Texts]:
    random = np.random.default_rng(2)
    sizes = ((90, 11, 7), (60, 4, 13))
    return [
        Texts(*(random.integers(0, VOCAB, (count, each)).astype(np.int32) for each in (length, reads)))
        for count, length, reads in sizes
    ]


def pruned(method: str) -> tuple[ReferenceModel, dict[str, Any]]:
    blocks, made, _ = pruned_blocks(MODEL, TENSORS, texts(), method, HALF)
    return blocks, made


def memories(blocks: ReferenceModel) -> Any:
    return [np.concatenate([blocks.encode(read) for read in each.reads]) for each in texts()]


def test_cross_attention_is_pruned_on_the_states_of_the_pruned_encoder() -> None:
    blocks, made = pruned("wanda")
    assert list(made) == list(MODEL.linears), "the encoder first"
    found = memories(blocks)
    assert not np.allclose(found[0], memories(ReferenceModel(MODEL, TENSORS))[0])
    squares = sum(np.square(memory).sum(axis=0) for memory in found)
    for name in ("layers.0.cross_k", "layers.1.cross_v"):
        expected = keep_important(TENSORS[name], importance(TENSORS[name], squares), HALF)
        np.testing.assert_array_equal(made[name], expected)


def test_better_methods_lose_less() -> None:
    dense, errors = ReferenceModel(MODEL, TENSORS), []
    random = np.random.default_rng(7)
    source, ids = random.integers(0, VOCAB, 12), random.integers(0, VOCAB, 12)
    wanted = dense.logits(ids, dense.encode(source))
    for method in ("sparsegpt", "wanda"):
        blocks, _ = pruned(method)
        errors.append(np.square(blocks.logits(ids, blocks.encode(source)) - wanted).mean())
    assert errors[0] < errors[1]


def test_divergence_is_measured_through_both() -> None:
    blocks, chosen = ReferenceModel(MODEL, TENSORS), probed(texts())
    probe = Probe(blocks, MODEL, texts(), TENSORS.__getitem__)
    measured = probe.divergence(HALF, blocks.set_weight, lambda *_: None)
    assert set(measured) == set(MODEL.linears)

    def predictions() -> Any:
        rows = [
            blocks.logits(ids, blocks.encode(read))
            for each in chosen
            for ids, read in zip(each.tokens, each.reads, strict=True)
        ]
        logits = np.concatenate(rows)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    dense, name = predictions(), "encoder.layers.0.down"
    squares = probe.squares[name]
    blocks.set_weight(name, keep_important(TENSORS[name], importance(TENSORS[name], squares), HALF))
    expected = (np.exp(dense) * (dense - predictions())).sum(axis=1).mean()
    assert measured[name] == pytest.approx(expected, rel=1e-4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers", reason="its models are what is pruned")
    from pair_checks import made_pair

    config = {"model_type": "t5", "vocab_size": 320, "d_model": 48, "d_kv": 12, "d_ff": 64, "num_layers": 2}
    return made_pair(tmp_path_factory.mktemp("pairs") / "dense", {**config, "num_heads": 4})


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    words = ["the", "spider", "spins", "a", "thread", "of", "gossamer", "and", "it", "holds"]
    lines = [
        {"source": " ".join(words[at % 7 : at % 7 + 1 + at % 3]), "target": " ".join(words[at % 5 : at % 5 + 2])}
        for at in range(16)
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return path


def matrices(path: Path) -> dict[str, Any]:
    checkpoint = open_checkpoint(path)
    return {name: checkpoint.tensor(name) for name in checkpoint.names()}


@pytest.mark.parametrize("options", [{}, {"method": "sparsegpt", "weights": "int4"}, {"pattern": (2, 4), "rank": 2}])
def test_a_stopped_run_goes_on_on_either_side(
    tmp_path: Path, folder: Path, pairs: Path, options: dict[str, Any]
) -> None:
    options = {**({} if "pattern" in options else {"sparsity": 0.5}), **options, "calibration": pairs}
    report = prune(folder, tmp_path / "whole", **options)
    assert report.reached >= 0.49, "rounding makes more"
    assert (report.pairs, report.windows) == (16, 0)
    for stop in (1, 3):

        def stopped(done: int, _total: int, what: str, stop: int = stop) -> None:
            if (done, what) == (stop, "pruning blocks"):
                raise KeyboardInterrupt

        part = tmp_path / f"stopped-{stop}"
        with pytest.raises(KeyboardInterrupt):
            prune(folder, part, **options, progress=stopped)
        prune(folder, part, **options)
        again, whole = matrices(part), matrices(tmp_path / "whole")
        for name, values in whole.items():
            np.testing.assert_array_equal(values, again[name])


def test_windows_say_how_many_pairs(tmp_path: Path, folder: Path, pairs: Path) -> None:
    options: dict[str, Any] = {"method": "wanda", "sparsity": 0.5, "calibration": pairs, "windows": 2, "length": 20}
    few = prune(folder, tmp_path / "few", **options)
    assert 2 < few.pairs < 16
    prune(folder, tmp_path / "again", **options)
    other = prune(folder, tmp_path / "other", **options, seed=1)
    assert 2 < other.pairs < 16
    one, two, three = (matrices(tmp_path / name) for name in ("few", "again", "other"))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert not all(np.array_equal(one[name], three[name]) for name in one)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "a calibration file of pairs is needed"),
        ("just text", r"pairs\.jsonl:1: not valid JSON"),
        ('{"source": "a", "target": "b c", "accept": 3}', r"pairs\.jsonl:1: accept must be"),
        ('{"audio": "a.wav", "transcript": "b"}', r"pairs\.jsonl:1: is sound, and the model reads text"),
        ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}', "has messages"),
    ],
)
def test_what_is_no_pair_is_named(tmp_path: Path, folder: Path, content: str | None, message: str) -> None:
    path = tmp_path / "pairs.jsonl"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(GossamerError, match=message):
        prune(folder, tmp_path / "pruned", sparsity=0.5, calibration=None if content is None else path)
    assert not (tmp_path / "pruned").exists()


def test_speech_is_pruned_on_sound(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="its models are what is pruned")
    soundfile = pytest.importorskip("soundfile", reason="reads sound")
    pytest.importorskip("soxr", reason="resamples")
    from pair_checks import made_whisper

    dense = made_whisper(tmp_path / "dense")
    noise = np.random.default_rng(0).standard_normal(8000) * 0.1
    soundfile.write(tmp_path / "clip.wav", noise, 16000)
    lines = [
        {"audio": "clip.wav", "transcript": "a thread"},
        {"audio": "clip.wav", "transcript": "b", "language": "de"},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    report = prune(dense, tmp_path / "pruned", method="sparsegpt", sparsity=0.5, calibration=path)
    assert report.pairs == 2
    assert report.reached == pytest.approx(0.5, abs=0.01)
    transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path / "pruned")
    for line, message in (
        ({"audio": "none.wav", "transcript": "a"}, r"pairs\.jsonl:1: .*none\.wav: No such file"),
        ({"source": "a", "target": "a"}, r"pairs\.jsonl:1: has no audio"),
        ({"audio": "clip.wav", "transcript": "a", "language": "xx"}, r"pairs\.jsonl:1: .*xx"),
        ({"audio": "clip.wav", "transcript": "a" * 60}, r"the target has 65 tokens, and the model holds 1 to 40"),
        ({"audio": "long.wav", "transcript": "a"}, "is longer than a window of 30 seconds"),
    ):
        soundfile.write(tmp_path / "long.wav", np.zeros(16000 * 31), 16000)
        path.write_text(json.dumps(line), encoding="utf-8")
        with pytest.raises(GossamerError, match=message):
            prune(dense, tmp_path / "other", sparsity=0.5, calibration=path)


def test_transcripts_end_where_no_config_names_the_token(tmp_path: Path) -> None:
    """As in folders of CTranslate2: what ends a transcript is known by its name."""
    pytest.importorskip("transformers", reason="its models are what is pruned")
    soundfile = pytest.importorskip("soundfile", reason="reads sound")
    pytest.importorskip("soxr", reason="resamples")
    from pair_checks import made_whisper

    dense = made_whisper(tmp_path / "dense")
    (dense / "tokenizer_config.json").unlink()
    (dense / "generation_config.json").unlink()
    config = json.loads((dense / "config.json").read_text("utf-8"))
    (dense / "config.json").write_text(json.dumps({**config, "eos_token_id": None}), encoding="utf-8")
    soundfile.write(tmp_path / "clip.wav", np.random.default_rng(0).standard_normal(8000) * 0.1, 16000)
    sample = TaskSample("clip", "", "a", audio=tmp_path / "clip.wav", language="en")
    checkpoint = open_checkpoint(dense)
    tokenizer = checkpoint.tokenizer()
    assert not tokenizer.eos_ids
    made = pairing(tokenizer, arch.family(checkpoint.config).describe(checkpoint.config))(sample)
    assert made.target[-1] == tokenizer.token_id("<|endoftext|>")
