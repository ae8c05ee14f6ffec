"""Samples that are drawn many at once by torch: against whole forward passes, and as folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import gossamer
from gossamer.arch.llama import Sizes
from gossamer.cli import main
from gossamer.errors import GossamerError
from gossamer.finetune.samples import read_samples, sample
from gossamer.loading import open_packed
from gossamer.packing.convert import convert
from gossamer.pruning import prune
from gossamer.text.calibration import openings
from tiny import tiny_llama

torch = pytest.importorskip("torch")

from gossamer.nn import sampler as module  # noqa: E402
from gossamer.nn.sampler import Sampler  # noqa: E402


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "dense", attention_bias=True)


@pytest.fixture
def sampler(model: Path, monkeypatch: pytest.MonkeyPatch) -> Sampler:
    monkeypatch.setattr(module, "_MOST", 8)
    return Sampler(open_packed(model), "cpu", torch.float32)


def drawn(window: list[int], sampler: Sampler, texts: list[list[int]]) -> list[int]:
    """The places of a window whose token was drawn; checks that texts open as they should."""
    places, at = [], 0
    while at < len(window):
        fitting = [text for text in texts if window[at : at + len(text)] == text[: len(window) - at]]
        assert fitting, window[at:]
        at += len(max(fitting, key=len))
        while at < len(window):
            places.append(at)
            at += 1
            if window[at - 1] in sampler.tokenizer.eos_ids:
                break
    return places


def test_steps_with_a_cache_are_the_whole_forward_pass(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda self, **_: self.fill_(1))  # no noise: the likeliest
    windows = sampler.windows(0, 100, seed=1)
    assert windows.shape == (8, 100)
    chats, documents = openings(sampler.tokenizer)
    with torch.no_grad():
        likeliest = sampler._decoder(torch.from_numpy(windows).long()).logits.argmax(-1)
    count = 0
    for row, (window, wanted) in enumerate(zip(windows.tolist(), likeliest.tolist(), strict=True)):
        for at in drawn(window, sampler, documents if row % 2 else chats):
            assert window[at] == wanted[at - 1]
            count += 1
    assert count > 200


def test_tokens_are_drawn_at_temperature_1(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 512)
    sampler = Sampler(open_packed(model), "cpu", torch.float32)
    windows = sampler.windows(0, 60, seed=2)
    with torch.no_grad():
        scores = torch.log_softmax(sampler._decoder(torch.from_numpy(windows).long()).logits.double(), -1)
    chats, documents = openings(sampler.tokenizer)
    surplus, variance = 0.0, 0.0
    for row, window in enumerate(windows.tolist()):
        for at in drawn(window, sampler, documents if row % 2 else chats):
            predicted = scores[row, at - 1]
            mean = float((predicted.exp() * predicted).sum())
            surplus += float(predicted[window[at]]) - mean
            variance += float((predicted.exp() * predicted.square()).sum()) - mean**2
    assert variance > 10
    assert abs(surplus) < 4 * variance**0.5


def test_folders_go_on_and_name_what_wrote_them(sampler: Sampler, model: Path, tmp_path: Path) -> None:
    assert sample(sampler, tmp_path / "whole", tokens=600, length=60, seed=4) == 600
    whole = np.concatenate(list(read_samples(tmp_path / "whole")))
    sample(sampler, tmp_path / "parts", tokens=180, length=60, seed=4)
    assert [len(part) for part in read_samples(tmp_path / "parts")] == [3]
    sample(sampler, tmp_path / "parts", tokens=600, length=60, seed=4)
    np.testing.assert_array_equal(np.concatenate(list(read_samples(tmp_path / "parts"))), whole)
    assert len(np.unique(whole, axis=0)) == len(whole)
    with pytest.raises(GossamerError, match=r"part_windows 8, this run has 48 \(was that another device"):
        sample(gossamer.load(model), tmp_path / "parts", tokens=600, length=60, seed=4)


def test_memory_bounds_what_is_written_at_once(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    c = Sizes.of(sampler.config)
    each = 2 * c.layers * c.kv_heads * c.head_dim * 50 * 4
    for room, windows in ((5 * each, 4), (4 * each, 4), (each // 2, 1), (100 * each, 8)):
        monkeypatch.setattr(module, "_CACHE_BYTES", room)
        assert sampler.part_windows(50) == windows


def test_low_rank_branches_are_part_of_the_model(model: Path, tmp_path: Path) -> None:
    prune(model, tmp_path / "pruned", sparsity=0.5, rank=4, windows=4, length=32)
    packed = open_packed(tmp_path / "pruned", "f32")
    tokens = np.arange(3, 40, dtype=np.int32)
    expected = gossamer.load(tmp_path / "pruned", weights="f32", activations="f32").logits(tokens)
    with torch.no_grad():
        logits = Sampler(packed, "cpu", torch.float32)._decoder(torch.from_numpy(tokens)[None].long()).logits[0]
    np.testing.assert_allclose(logits.numpy(), expected, rtol=0, atol=1e-4)


def test_a_packed_folder_is_a_teacher_too(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 4)
    convert(model, tmp_path / "packed", weights="f32")
    from_folder = Sampler(open_packed(tmp_path / "packed"), "cpu", torch.float32)
    from_checkpoint = Sampler(open_packed(model), "cpu", torch.float32)
    np.testing.assert_array_equal(from_folder.windows(0, 60, seed=5), from_checkpoint.windows(0, 60, seed=5))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(model), str(tmp_path / "out"), "--tokens", "100", "--device", "cuda"]) == 1
    assert "device cuda: torch finds no CUDA device here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.gpu
def test_on_a_gpu(model: Path) -> None:
    gpu = Sampler(open_packed(model), "cuda")
    windows = gpu.windows(0, 64, seed=3)
    np.testing.assert_array_equal(windows, gpu.windows(0, 64, seed=3))
    chats, documents = openings(gpu.tokenizer)
    places = [drawn(window, gpu, documents if row % 2 else chats) for row, window in enumerate(windows.tolist())]
    assert sum(map(len, places)) > 1000
