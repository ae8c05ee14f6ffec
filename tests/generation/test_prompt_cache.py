"""Prompts kept in files: the same text from them, whatever is shared; what is damaged or another's is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer
from adapter_files import factors, write_lora
from fakes import fake_model
from gossamer.errors import GossamerError
from gossamer.generation.model import Model
from tiny import tiny_llama

PROMPT = "the cat sat on the mat and looked at the dog " * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("kept") / "m", max_position_embeddings=500)


@pytest.fixture
def model(folder: Path) -> Model:
    return gossamer.load(folder, threads=1)


def reused(model: Model) -> int:
    assert model.last_stats is not None
    return model.last_stats.reused_tokens


@pytest.mark.parametrize("kv", ["f32", "f16", "int8"])
def test_a_kept_prompt_is_not_computed_again(kv: str, folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_new_tokens": 12, "chat": False}
    first = gossamer.load(folder, threads=1, kv=kv)
    plain = first.generate(PROMPT, **options)
    path = tmp_path / "kept"
    assert first.generate(PROMPT, prompt_cache=path, **options) == plain
    assert reused(first) == 0
    written = path.stat().st_mtime_ns
    count = len(first.tokenizer.encode(PROMPT))
    assert count > 64
    second = gossamer.load(folder, threads=1, kv=kv)
    assert second.generate(PROMPT, prompt_cache=path, **options) == plain
    assert reused(second) == count - 1
    assert path.stat().st_mtime_ns == written, "it has all of it"
    other = PROMPT[:-20] + "another end"
    expected = second.generate(other, **options)
    assert second.generate(other, prompt_cache=path, **options) == expected
    assert 0 < reused(second) < count - 1
    assert path.stat().st_mtime_ns > written
    assert second.generate(other[:40], prompt_cache=path, **options) == second.generate(other[:40], **options)
    assert (first.decoder.kv_bytes, second.decoder.kv_bytes) == (0, 0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept"]


def test_a_prompt_is_kept_before_windows_leave_it_behind(tmp_path: Path) -> None:
    window = {"model_type": "mistral", "sliding_window": 60, "max_position_embeddings": 4000}
    folder = tiny_llama(tmp_path / "m", **window)
    model = gossamer.load(folder, threads=1)
    prompt = PROMPT * 12
    count = len(model.tokenizer.encode(prompt))
    ends = dict.fromkeys(model.tokenizer.eos_ids, -1e9)
    options: dict[str, Any] = {"max_new_tokens": 1200, "chat": False, "logit_bias": ends}
    plain = model.generate(prompt, **options)
    assert model.last_stats is not None
    assert model.last_stats.new_tokens == 1200
    path = tmp_path / "kept"
    assert model.generate(prompt, prompt_cache=path, **options) == plain
    again = gossamer.load(folder, threads=1)
    assert again.generate(prompt, prompt_cache=path, **options) == plain
    assert reused(again) == count - 1
    assert path.stat().st_size < model.decoder.kv_bytes_of(count, count)


def test_a_flipped_bit_is_refused_wherever_it_is(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    model.generate(PROMPT, chat=False, max_new_tokens=1, prompt_cache=path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    rng = np.random.default_rng(0)
    places = [*rng.integers(0, header, 40), *rng.integers(header, len(whole), 20), 0, 7, header - 1, len(whole) - 1]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(GossamerError, match=f"^{path}: ") as error:
            model.generate(PROMPT, chat=False, max_new_tokens=1, prompt_cache=path)
        assert "\n" not in str(error.value)
        assert path.read_bytes() == damaged, "what is not known is not written over"
    for short in (0, 5, header, len(whole) - 1):
        path.write_bytes(whole[:short])
        with pytest.raises(GossamerError, match=f"^{path}: "):
            model.generate(PROMPT, chat=False, max_new_tokens=1, prompt_cache=path)
    assert model.decoder.kv_bytes == 0


def test_files_of_other_models_are_refused(model: Model, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    model.generate(PROMPT, chat=False, max_new_tokens=1, prompt_cache=path)
    kept = path.read_bytes()
    seeded = gossamer.load(tiny_llama(tmp_path / "other", seed=1, max_position_embeddings=500), threads=1)
    half = gossamer.load(folder, threads=1, kv="f16")
    rounded = gossamer.load(folder, threads=1, weights="int8")
    adapted = gossamer.load(folder, threads=1)
    adapted.adapters.load(write_lora(tmp_path / "lora", factors({"model.layers.0.self_attn.q_proj": (96, 96)}, 4)))
    for other in (seeded, half, rounded, adapted):
        with pytest.raises(GossamerError, match="was made with another model, other adapters or another type"):
            other.generate(PROMPT, chat=False, max_new_tokens=1, prompt_cache=path)
        assert other.decoder.kv_bytes == 0
    assert path.read_bytes() == kept
    assert adapted.generate(PROMPT, chat=False, max_new_tokens=1, prompt_cache=path, adapters=()) is not None
    shutil.copy(folder / "model.safetensors", path)
    with pytest.raises(GossamerError, match="is no prompt cache of this version"):
        model.generate(PROMPT, chat=False, prompt_cache=path)
    for place, words in ((tmp_path, "is a folder"), (tmp_path / "none" / "kept", "its folder does not exist")):
        with pytest.raises(GossamerError, match=words):
            model.stream(PROMPT, prompt_cache=place)
    with pytest.raises(GossamerError, match="for models on the CPU"):
        fake_model().stream("a", prompt_cache=path)


def test_a_prompt_that_may_have_to_go_is_not_kept(model: Model, tmp_path: Path) -> None:
    with pytest.raises(GossamerError, match=r"^context_shift and prompt_cache exclude each other"):
        model.generate(PROMPT, chat=False, max_new_tokens=1, context_shift=1, prompt_cache=tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_nothing_half_written_stays(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kept"

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(GossamerError, match=f"^{path}: cannot write: No space left on device$"):
            model.generate(PROMPT, chat=False, max_new_tokens=1, prompt_cache=path)
    assert list(tmp_path.iterdir()) == []
    pieces = model.stream(PROMPT, chat=False, max_new_tokens=50, prompt_cache=path)
    next(pieces)
    pieces.close()
    assert path.exists(), "a text that was left early has had its whole prompt computed"
    assert model.decoder.kv_bytes == 0


def test_a_chat_goes_on_in_another_process(model: Model, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    options = {"max_new_tokens": 6, "seed": 1}
    system = "you are a cat and answer as one " * 4
    chat = model.conversation(system, prompt_cache=path)
    answers = ["".join(chat.say(text, **options)) for text in ("one", "two")]
    chat.keep()
    other = gossamer.load(folder, threads=1)
    again = other.conversation(system, prompt_cache=path)
    for text, answer in zip(("one", "two"), answers, strict=True):
        assert "".join(again.say(text, **options)) == answer
        assert reused(other) > 64
    again.keep()
    model.conversation(system).keep()  # which has none
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(GossamerError, match="is damaged"):
        other.conversation(system, prompt_cache=path)


def test_a_full_cache_is_told(folder: Path, model: Model, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    model.generate(PROMPT, chat=False, max_new_tokens=1, prompt_cache=path)
    tight = gossamer.load(folder, threads=1, kv_limit=model.decoder.kv_bytes_of(1, 1))
    with pytest.raises(GossamerError, match=f"^{path}: the KV cache is at its limit"):
        tight.generate("a", chat=False, prompt_cache=path)
    assert tight.decoder.kv_bytes == 0
