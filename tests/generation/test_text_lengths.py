"""How long texts become where a model says so: what is heeded of it, and what is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import gossamer
from gguf_files import write_gguf
from gossamer.checkpoints import open_checkpoint
from gossamer.errors import GossamerError
from gossamer.generation.sampling_options import CHAT, GENERATE, SamplingOptions, model_defaults
from gossamer.packing.convert import convert
from gossamer.text.generation_config import unheeded, unheeded_for_speech
from tiny import tiny_llama


def test_the_most_tokens_that_a_model_says_hold_where_none_are_given(tmp_path: Path):
    folder = tiny_llama(tmp_path / "m")
    for asked in ({}, {"do_sample": False}, {"temperature": 0.5}):
        (folder / "generation_config.json").write_text(json.dumps({"max_new_tokens": 3, "eos_token_id": 2, **asked}))
        convert(folder, tmp_path / "packed", force=True)
        for place in ("m", "packed"):
            model = gossamer.load(tmp_path / place)
            for fallback in (GENERATE, CHAT):
                assert model.defaults(fallback).max_new_tokens == 3
            model.generate("a")
            assert model.last_stats is not None
            assert model.last_stats.new_tokens <= 3
            assert model.defaults().changed({"max_new_tokens": 5}).max_new_tokens == 5
    for wrong in (0, "5", True):
        with pytest.raises(GossamerError, match=r"^max_new_tokens must be "):
            model_defaults({"max_new_tokens": wrong}, GENERATE)


def test_the_longest_text_of_a_decoder_that_reads_an_encoder_is_heeded():
    begun = {"decoder_start_token_id": 2, "forced_bos_token_id": 9}
    assert model_defaults({**begun, "max_length": 200}, GENERATE).max_new_tokens == 198
    assert model_defaults({**begun, "max_length": 200, "max_new_tokens": 7}, CHAT).max_new_tokens == 7
    assert model_defaults({**begun, "max_length": 1}, GENERATE).max_new_tokens == 1
    assert unheeded({**begun, "max_length": 200}, 500) == []
    assert unheeded({**begun, "max_length": "200"}, 500) == ["max_length '200'"]
    assert model_defaults({**begun, "max_length": 20}, GENERATE) == GENERATE  # transformers' own default, kept in files
    assert unheeded_for_speech({**begun, "max_length": 100}, 448) == ["max_length 100"]


def test_lengths_that_are_not_heeded_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    assert unheeded({"max_length": 100}, 128) == ["max_length 100"]
    for nothing in ({"max_length": 128}, {"max_length": 20}, {"max_length": 100, "max_new_tokens": 9}, {}):
        assert unheeded(nothing, 128) == []
    folder = tiny_llama(tmp_path / "m", max_length=100)  # as older programs have it, in config.json
    convert(folder, tmp_path / "packed")
    for place in ("m", "packed"):
        caplog.clear()
        model = gossamer.load(tmp_path / place)
        assert caplog.messages == [f"{tmp_path / place}: the model asks for max_length 100, which is not done here"]
        model.generate("a", max_new_tokens=1)
        assert model.last_stats is not None
        assert model.last_stats.unheeded == ("max_length 100",)
    for tokens, window in ((None, 64), (256, 256)):
        keys = {"general.sampling.penalty_repeat": 1.5}
        keys |= {} if tokens is None else {"general.sampling.penalty_last_n": tokens}
        path = write_gguf(tmp_path / "m.gguf", keys=keys)
        generation = open_checkpoint(path).tokenizer().generation
        assert unheeded(generation) == []
        assert model_defaults(generation, GENERATE) == SamplingOptions(repeat_penalty=1.5, repeat_window=window)
    path = write_gguf(tmp_path / "m.gguf", keys={"general.sampling.sequence": "top_k;temperature"})
    assert unheeded(open_checkpoint(path).tokenizer().generation) == ["sequence 'top_k;temperature'"]
