"""Options of a text: fair values, names, and whose defaults hold, from every place that a model may keep its own in."""

from __future__ import annotations

import dataclasses
import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer
from fakes import fake_model
from gguf_files import write_gguf
from gossamer.checkpoints import open_checkpoint
from gossamer.cli import main
from gossamer.errors import GossamerError
from gossamer.generation.sampling_options import CHAT, GENERATE, SamplingOptions, model_defaults
from gossamer.packing.convert import convert
from gossamer.pruning import prune
from gossamer.text.generation_config import unheeded
from tiny import tiny_llama

ALL = {"repeat_window": 0}  # tokens, which transformers looks at
OWN = {"do_sample": True, "temperature": 0.6, "top_k": 30, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2}
DRAWN = {"temperature": 0.6, "top_k": 30, "top_p": 0.9, "min_p": 0.02, "repeat_penalty": 1.2, **ALL}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf), ("top_k", -1), ("top_p", 0.0),
        ("top_p", 1.01), ("top_p", math.nan), ("min_p", -0.1), ("min_p", 1.5), ("repeat_penalty", 0.0),
        ("repeat_penalty", math.inf), ("seed", -1), ("max_new_tokens", 0), ("temperature", "hot"), ("top_k", 2.5),
        ("top_p", None), ("typical_p", 0.0), ("typical_p", 1.1), ("frequency_penalty", math.nan),
        ("presence_penalty", "much"), ("logit_bias", 3), ("logit_bias", {"a": 1.0}), ("logit_bias", {-1: 1.0}),
        ("logit_bias", {1: math.inf}), ("logit_bias", {1: "x"}), ("logit_bias", [(1, 2.0), ("1", 3.0)]),
        ("logprobs", -1), ("logprobs", True), ("beams", 0), ("length_penalty", math.nan), ("early_stopping", 1),
        ("renormalize", 1),
        ("context_shift", -1), ("context_shift", True), ("context_shift", 1.5),
        ("logit_bias", {1: 1e39}), ("repeat_penalty", 1e-40), ("repeat_penalty", 1e39), ("frequency_penalty", -1e39),
        ("seed", True), ("stop", 3), ("stop", (b"a",)), ("stop", ("a", "")),
    ],
)  # fmt: skip
def test_options_out_of_range_are_named(name: str, value: Any):
    with pytest.raises(GossamerError, match=f"^{name}(:| must be .*got)"):
        SamplingOptions(**{name: value})


def test_a_stop_string_that_no_text_can_hold_is_refused():
    with pytest.raises(GossamerError, match="a stop string is no valid Unicode text"):
        SamplingOptions(stop=("a", "caf\udce9"))


def test_one_stop_string_will_do():
    assert SamplingOptions(stop="end").stop == ("end",)  # type: ignore[arg-type]
    assert SamplingOptions(stop=["a", "b"]).stop == ("a", "b")  # type: ignore[arg-type]


def test_biases_are_kept_sorted_and_may_come_from_json():
    options = SamplingOptions(logit_bias={"7": -100, 3: 1.5})  # type: ignore[arg-type]
    assert options.logit_bias == ((3, 1.5), (7, -100.0))
    assert options.changed({"logit_bias": options.logit_bias}) == options
    assert json.loads(json.dumps(options.to_dict()))["logit_bias"] == {"3": 1.5, "7": -100.0}
    assert hash(options) == hash(SamplingOptions(logit_bias=((7, -100), (3, 1.5))))


def test_options_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GENERATE.temperature = 1.0  # type: ignore[misc]
    assert GENERATE.changed({"top_k": 3}) == SamplingOptions(top_k=3)


@pytest.mark.parametrize(
    ("generation", "for_generate", "for_chat"),
    [
        ({}, {}, CHAT),
        ({"eos_token_id": 2, "temperature": None}, {}, CHAT),
        (OWN, DRAWN, DRAWN),
        ({"do_sample": True}, {"temperature": 1.0, "top_k": 50}, {"temperature": 1.0, "top_k": 50}),
        ({"do_sample": True, "top_k": 0}, {"temperature": 1.0}, {"temperature": 1.0}),
        ({"do_sample": True, "top_k": -1}, {"temperature": 1.0}, {"temperature": 1.0}),
        ({"temperature": 0.6, "top_p": 0.9}, {"temperature": 0.6, "top_p": 0.9}, {"temperature": 0.6, "top_p": 0.9}),
        # The likeliest token: what filters the model has would change nothing.
        ({"do_sample": False, "temperature": 0.6, "top_p": 0.9}, {}, {}),
        (
            {"do_sample": False, "repetition_penalty": 1.1},
            {"repeat_penalty": 1.1, **ALL},
            {"repeat_penalty": 1.1, **ALL},
        ),
        (
            {"do_sample": True, "typical_p": 0.9},
            {"temperature": 1.0, "top_k": 50, "typical_p": 0.9},
            {"temperature": 1.0, "top_k": 50, "typical_p": 0.9},
        ),
        # Whether to draw is not said: only what is said is laid over ours.
        (
            {"repetition_penalty": 1.1},
            {"repeat_penalty": 1.1, **ALL},
            dataclasses.replace(CHAT, repeat_penalty=1.1, **ALL),
        ),
        ({"repetition_penalty": 1.0}, {}, dataclasses.replace(CHAT, repeat_penalty=1.0)),
        ({"penalty_last_n": 0}, {}, dataclasses.replace(CHAT, repeat_penalty=1.0)),  # in llama.cpp, as -1 is
        ({"penalty_last_n": -1}, ALL, dataclasses.replace(CHAT, **ALL)),
        ({"top_p": 0.8}, {"top_p": 0.8}, dataclasses.replace(CHAT, top_p=0.8)),
    ],
)
def test_the_models_own_defaults_hold(generation: dict[str, Any], for_generate: Any, for_chat: Any):
    assert model_defaults(generation, GENERATE) == SamplingOptions(**for_generate)
    if isinstance(for_chat, dict):
        for_chat = SamplingOptions(max_new_tokens=CHAT.max_new_tokens, **for_chat)
    assert model_defaults(generation, CHAT) == for_chat


@pytest.mark.parametrize("said", [{}, {"top_k": None}, {"top_k": 7}, {"top_k": 0}])
def test_a_model_that_draws_draws_from_as_many_tokens_as_in_transformers(tmp_path: Path, said: dict[str, Any]):
    torch = pytest.importorskip("torch", reason="transformers runs models with it")
    transformers = pytest.importorskip("transformers", reason="the oracle")
    folder = tiny_llama(tmp_path / "m")
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "eos_token_id": 2, **said}))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).generate(
        torch.tensor([[5, 6, 7]]), max_new_tokens=1, return_dict_in_generate=True, output_scores=True
    )
    from_theirs = int(theirs.scores[0].isfinite().sum())
    model = gossamer.load(folder)
    assert (model.defaults().top_k or model.config.vocab) == from_theirs


@pytest.mark.parametrize(
    ("generation", "line"),
    [
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
        ({"temperature": "warm"}, "temperature must be a number, got 'warm'"),
        ({"do_sample": "yes"}, "do_sample must be true or false, got 'yes'"),
        ({"repetition_penalty": 0}, "repetition_penalty must be between 1e-30 and 1e30, got 0"),
    ],
)
def test_bad_defaults_of_a_model_are_named(generation: dict[str, Any], line: str):
    model = fake_model()
    model.tokenizer.generation = generation
    with pytest.raises(GossamerError, match=f"^fake: the model's own sampling defaults: {line}$"):
        model.stream("a")


def test_they_are_read_from_a_checkpoint_and_kept_by_packing_and_pruning(tmp_path: Path):
    folder = tiny_llama(tmp_path / "m")
    (folder / "generation_config.json").write_text(json.dumps({**OWN, "eos_token_id": [2, 1], "cache": "x"}), "utf-8")
    convert(folder, tmp_path / "packed")
    prune(folder, tmp_path / "pruned", method="magnitude", sparsity=0.5)
    convert(tmp_path / "pruned", tmp_path / "both")
    for place in ("m", "packed", "pruned", "both"):
        model = gossamer.load(tmp_path / place)
        assert model.defaults() == SamplingOptions(**DRAWN), place
        assert model.tokenizer.eos_ids == {1, 2}, place


def test_they_are_read_from_a_gguf_file_and_kept(tmp_path: Path):
    sampling = {"temp": 0.6, "top_k": 30, "top_p": 0.9, "min_p": 0.02, "penalty_repeat": 1.2, "mirostat": 0}
    keys = {f"general.sampling.{name}": value for name, value in sampling.items()}
    path = write_gguf(tmp_path / "m.gguf", keys=keys)
    assert model_defaults(open_checkpoint(path).tokenizer().generation, CHAT).changed(
        {"max_new_tokens": 128}
    ) == SamplingOptions(**{**DRAWN, "repeat_window": 64})
    convert(path, tmp_path / "packed")
    prune(path, tmp_path / "pruned", method="magnitude", sparsity=0.5)
    for place in ("packed", "pruned"):
        assert gossamer.load(tmp_path / place).defaults() == SamplingOptions(**{**DRAWN, "repeat_window": 64})
    plain = write_gguf(tmp_path / "plain.gguf")
    assert open_checkpoint(plain).tokenizer().generation == {}


def test_what_was_chosen_is_told():
    model = fake_model(template=True)
    model.generate("a", max_new_tokens=2)
    assert model.last_stats is not None
    assert model.last_stats.text().splitlines()[2] == "sampling: the likeliest token"
    list(model.conversation().say("a", max_new_tokens=2, seed=3))
    told = "temperature 0.7, top-p 0.95, min-p 0.05, repeat penalty 1.05, seed 3"
    assert model.last_stats.text().splitlines()[2] == f"sampling: {told}"
    document = json.loads(json.dumps(model.last_stats.to_dict()))
    assert document["sampling"] == {
        **dataclasses.asdict(CHAT),
        "seed": 3,
        "max_new_tokens": 2,
        "stop": [],
        "logit_bias": {},
        "bad_words": [],
    }


def test_what_a_model_asks_for_and_does_not_get_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = tiny_llama(tmp_path / "m")
    asked = {
        "penalty_alpha": 0.6,
        "typical_p": 1.0,
        "no_repeat_ngram_size": 3,
        "bad_words_ids": [],
        "stop_strings": ["#"],
    }
    (folder / "generation_config.json").write_text(json.dumps(asked), "utf-8")
    convert(folder, tmp_path / "packed")
    for place in ("m", "packed"):
        caplog.clear()
        model = gossamer.load(tmp_path / place)
        for _ in range(2):
            model.generate("a", max_new_tokens=1)
        asks = "penalty_alpha 0.6, no_repeat_ngram_size 3, stop_strings ['#']"
        assert caplog.messages == [f"{tmp_path / place}: the model asks for {asks}, which is not done here"]
        assert model.last_stats is not None
        assert model.last_stats.text().splitlines()[2] == (
            "sampling: the likeliest token; the model also asks for penalty_alpha 0.6, no_repeat_ngram_size 3, "
            "stop_strings ['#'], not done here"
        )
        assert model.last_stats.to_dict()["unheeded"][1:] == ["no_repeat_ngram_size 3", "stop_strings ['#']"]
    keys = {"general.sampling.mirostat": 2, "general.sampling.xtc_probability": 0.0}
    path = write_gguf(tmp_path / "m.gguf", keys=keys)
    assert unheeded(open_checkpoint(path).tokenizer().generation) == ["mirostat 2"]


def test_a_model_that_ends_no_text_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = tiny_llama(tmp_path / "m", eos_token_id=None)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in settings.items() if k != "eos_token"}))
    convert(folder, tmp_path / "packed")
    for place in ("m", "packed"):
        caplog.clear()
        model = gossamer.load(tmp_path / place)
        assert not model.tokenizer.eos_ids
        for _ in range(2):
            model.generate("a", max_new_tokens=1)
        assert caplog.messages == [
            f"{tmp_path / place}: the model names no token that ends a text: it goes on to its limit"
        ]


def test_the_command_tells_it_once_beside_the_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tiny_llama(tmp_path / "m")
    (folder / "generation_config.json").write_text(json.dumps({"min_length": 9}), "utf-8")
    assert main(["generate", "a", "-m", str(folder), "-n", "1", "--completions", "2"]) == 0
    note = f"gossamer: note: {folder}: the model asks for min_length 9, which is not done here\n"
    assert capsys.readouterr().err.count(note) == 1


@pytest.mark.parametrize("beside", [False, True])
def test_what_older_programs_put_into_config_json_holds_where_there_is_nothing_beside(tmp_path: Path, beside: bool):
    pytest.importorskip("torch", reason="transformers reads models with it")
    theirs_of = pytest.importorskip("transformers", reason="the oracle").AutoModelForCausalLM
    asked = {"num_beams": 3, "length_penalty": 2.0, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2}
    folder = tiny_llama(tmp_path / "m", **asked)
    if beside:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}), "utf-8")
    theirs = theirs_of.from_pretrained(folder).generation_config
    convert(folder, tmp_path / "packed")
    for place in ("m", "packed"):
        model = gossamer.load(tmp_path / place)
        options = model_defaults(model.tokenizer.generation, GENERATE)
        for own, name in (("beams", "num_beams"), ("length_penalty",) * 2, ("repeat_penalty", "repetition_penalty")):
            expected = getattr(theirs, name)
            assert getattr(options, own) == (getattr(GENERATE, own) if expected is None else expected)
        assert unheeded(model.tokenizer.generation) == ([] if beside else ["no_repeat_ngram_size 2"])


def test_options_that_there_are_not_are_answered_with_those_that_there_are(monkeypatch: pytest.MonkeyPatch):
    model = fake_model(template=True)
    known = ", ".join(field.name for field in dataclasses.fields(SamplingOptions))
    for call in (model.stream, model.generate):
        with pytest.raises(
            TypeError, match=f"^there is no option temprature; .*: {known}, .*; did you mean temperature"
        ):
            call("a", temprature=1.0)
    with pytest.raises(TypeError, match=f"^there is no option colour; there are: {known}, draft$"):
        model.conversation().say("a", colour=1)
    monkeypatch.setattr("gossamer.loading.load", lambda *_: pytest.fail("nothing may be loaded"))
    with pytest.raises(TypeError, match=r"there is no option max_length; there are: .*, prompt_cache, sampling$"):
        gossamer.generate("a", max_length=3)


def test_options_may_be_given_whole():
    model = fake_model()
    model.tokenizer.generation = OWN
    assert model.generate("ab", gossamer.SamplingOptions(max_new_tokens=3)) == "cde"
    assert model.last_stats is not None
    assert model.last_stats.sampling == SamplingOptions(max_new_tokens=3)
    assert model.generate("ab", GENERATE, max_new_tokens=2, stop="d") == "c"


def test_words_that_a_model_must_not_write() -> None:
    model = fake_model("aab.", words=["", "a", "b", "c"])
    a, b = (model.tokenizer.encode(letter)[0] for letter in "ab")
    assert model.generate("a") == "ab"
    model.tokenizer.generation = {"bad_words_ids": [[a, b]]}
    assert model.defaults().bad_words == ((a, b),)
    for beams in (1, 3):
        assert "ab" not in model.generate("a", beams=beams, max_new_tokens=9)
    assert model.last_stats is not None
    assert "without 1 sequences of tokens" in model.last_stats.text()
    assert model.last_stats.to_dict()["sampling"]["bad_words"] == [[a, b]]
    assert model.generate("a", bad_words=[], max_new_tokens=9) == "ab"
    end = next(iter(model.tokenizer.eos_ids))
    model.tokenizer.generation = {"bad_words_ids": [[end], [a, end]]}  # transformers leaves the end alone
    assert model.defaults().bad_words == ((a, end),)
    model.tokenizer.generation = {}
    for words, message in (
        ([[]], "bad_words must be lists of tokens, none of them empty"),
        ("ab", "bad_words must be lists of tokens"),
        ([["a"]], "bad_words: a token must be a whole number, got 'a'"),
        ([[10**6]], "bad_words: token 1000000 is outside the model's vocabulary"),
    ):
        with pytest.raises(GossamerError, match=message):
            model.generate("a", bad_words=words)
    model.tokenizer.generation = {"bad_words_ids": [[-1]]}
    with pytest.raises(GossamerError, match="bad_words_ids: a token must be at least 0, got -1"):
        model.defaults()


def test_tokens_that_a_decoder_begins_with_are_heeded() -> None:
    assert unheeded({"decoder_start_token_id": 2, "forced_bos_token_id": 3}) == []
    assert unheeded({"forced_bos_token_id": 3}) == ["forced_bos_token_id 3"]


def test_several_texts_and_a_time_are_told() -> None:
    asked = {"num_return_sequences": 3, "max_time": 2.0, "renormalize_logits": True}
    assert unheeded(asked) == ["num_return_sequences 3", "max_time 2.0"]
    assert unheeded({"num_return_sequences": 1}) == []
    assert model_defaults({"num_beams": 2, **asked}, GENERATE).renormalize is True


def test_options_of_beams_alone_are_refused_without_beams():
    for name, value in {"length_penalty": 2.0, "early_stopping": True, "renormalize": True}.items():
        with pytest.raises(GossamerError, match=f"^{name} is of beams, and would do nothing"):
            GENERATE.changed({name: value})
        assert getattr(SamplingOptions(beams=2).changed({name: value}), name) == value
    assert GENERATE.changed({"length_penalty": 1.0, "early_stopping": False}) == GENERATE


def test_numbers_of_other_libraries_are_those_of_python() -> None:
    options = SamplingOptions(
        temperature=Fraction(1, 2), top_k=np.uint8(40), top_p=np.float32(0.5), seed=np.int64(3), repeat_penalty=2
    )
    assert options == SamplingOptions(temperature=0.5, top_k=40, top_p=0.5, seed=3, repeat_penalty=2)
    assert [type(getattr(options, name)) for name in ("temperature", "top_k", "top_p", "seed")] == [
        float,
        int,
        float,
        int,
    ]
    json.dumps(options.to_dict())


def test_small_whole_numbers_of_numpy_draw_what_those_of_python_draw(tmp_path: Path) -> None:
    model = gossamer.load(tiny_llama(tmp_path / "m"))  # whose vocabulary is no 8-bit number
    ask = {"chat": False, "max_new_tokens": 8, "seed": 1}
    drawn = model.generate("The spider", temperature=0.5, top_k=5, **ask)
    assert model.generate("The spider", temperature=Fraction(1, 2), top_k=np.uint8(5), **ask) == drawn


def test_a_window_without_a_penalty_is_refused_and_is_told_with_one() -> None:
    with pytest.raises(GossamerError, match="repeat_window would do nothing without a repeat_penalty"):
        GENERATE.changed({"repeat_window": 9})
    assert "repeat penalty 1.5 over 9 tokens" in GENERATE.changed({"repeat_window": 9, "repeat_penalty": 1.5}).text()
    assert "repeat penalty 1.5 over all tokens" in SamplingOptions(repeat_penalty=1.5, repeat_window=0).text()
