"""Vectors of texts."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers

import gossamer
from adapter_files import factors, write_lora
from gossamer import GossamerError
from gossamer.cli import main
from gossamer.pruning import prune
from tiny import SPECIAL_TOKENS, save_tokenizer, tiny_llama

TEXTS = ["The spider spins.", "A thread", "The net of the weaver is thin, and the thread holds the spider."]


def folder(
    path: Path,
    pooling: dict[str, Any] | None = None,
    modules: tuple[str, ...] = (),
    *,
    kind: str = "bert",
    place: str = "1_Pooling",
) -> Path:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        kind,
        vocab_size=320,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=40,
        pad_token_id=1,
    )
    transformers.AutoModel.from_config(config).save_pretrained(path)
    save_tokenizer(path)
    if pooling is not None:
        (path / place).mkdir()
        (path / place / "config.json").write_text(json.dumps(pooling))
        names = ("Transformer", "Pooling", *modules)
        kinds = [f"sentence_transformers.models.{name}" for name in names]
        listed = [
            {"idx": number, "path": place if "Pooling" in name else "", "type": name}
            for number, name in enumerate(kinds)
        ]
        (path / "modules.json").write_text(json.dumps(listed))
    return path


def states(path: Path, model: Any, text: str) -> Any:
    theirs = transformers.BertModel.from_pretrained(path).double().eval()
    with torch.no_grad():
        return theirs(torch.tensor([model.tokenizer.encode(text)])).last_hidden_state[0].numpy()


def test_vectors_are_means_of_length_one(tmp_path: Path) -> None:
    model = gossamer.load(folder(tmp_path / "model"), activations="f32")
    found = model.embed(TEXTS)
    assert found.shape == (3, 48)
    assert found.dtype == np.float32
    for text, vector in zip(TEXTS, found, strict=True):
        mean = states(tmp_path / "model", model, text).mean(0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5, rtol=0)
        np.testing.assert_array_equal(model.embed([text])[0], vector)
    assert model.embed([]).shape == (0, 48)


def test_damaged_weights_are_a_clear_error(tmp_path: Path) -> None:
    path = folder(tmp_path / "model")
    theirs = transformers.BertModel.from_pretrained(path)
    with torch.no_grad():
        theirs.encoder.layer[0].output.dense.weight[0, 0] = torch.nan
    theirs.save_pretrained(path)
    with pytest.raises(GossamerError, match="states are not finite"):
        gossamer.load(path, activations="f32").embed(TEXTS)


def test_the_first_token_and_no_length(tmp_path: Path) -> None:
    path = folder(tmp_path / "model", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    model = gossamer.load(path, activations="f32")
    first = states(path, model, TEXTS[0])[0]
    np.testing.assert_allclose(model.embed(TEXTS[:1])[0], first, atol=1e-5, rtol=0)
    mean = states(path, model, TEXTS[0]).mean(0)
    np.testing.assert_allclose(model.embed(TEXTS[:1], pool="mean")[0], mean, atol=1e-5, rtol=0)
    np.testing.assert_allclose(np.linalg.norm(model.embed(TEXTS, normalize=True), axis=1), 1, atol=1e-6)


UP, DOWN = "encoder.layer.1.intermediate.dense", "encoder.layer.1.output.dense"


def test_adapters_change_vectors_as_merged_weights_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder(tmp_path / "model")
    model = gossamer.load(path, activations="f32")
    bare = model.embed(TEXTS)
    made = factors({UP: (64, 48), DOWN: (48, 64)}, 4)
    task = write_lora(tmp_path / "task", made, target_modules=[UP, DOWN])
    theirs = transformers.BertModel.from_pretrained(path)
    for module, (b, a) in made.items():
        theirs.get_submodule(module).weight.data += torch.from_numpy(b @ a)
    theirs.save_pretrained(tmp_path / "merged")
    expected = np.stack([states(tmp_path / "merged", model, text).mean(0) for text in TEXTS])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    model.adapters.load(task, weight=0)
    found = model.embed(TEXTS, adapters="task")
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    assert np.abs(found - bare).max() > 0.01
    np.testing.assert_array_equal(model.embed(TEXTS[1:2], adapters={"task": 1.0})[0], found[1])
    np.testing.assert_array_equal(model.embed(TEXTS), bare)
    model.adapters.set("task")
    np.testing.assert_array_equal(model.embed(TEXTS), found)
    np.testing.assert_array_equal(model.embed(TEXTS, adapters={}), bare)
    with pytest.raises(GossamerError, match="there is no adapter 'tusk'; loaded: task"):
        model.embed(TEXTS, adapters="tusk")
    assert main(["embed", TEXTS[1], "-m", str(path), "--activations", "f32", "--adapter", str(task)]) == 0
    told = np.float32(json.loads(capsys.readouterr().out)["embedding"])
    np.testing.assert_array_equal(told, found[1])


def test_packed_and_pruned_folders_keep_how_vectors_are_made(tmp_path: Path) -> None:
    path = folder(tmp_path / "model", {"pooling_mode_cls_token": True}, place="pooling")
    prune(path, tmp_path / "pruned", method="magnitude", sparsity=0.5)
    gossamer.convert(tmp_path / "pruned", tmp_path / "packed", weights="f32")
    model = gossamer.load(tmp_path / "packed", activations="f32")
    first = states(tmp_path / "pruned", model, TEXTS[2])[0]
    np.testing.assert_allclose(model.embed(TEXTS[2:])[0], first, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("pooling", "first"),
    [
        ({"pooling_mode": "cls", "embedding_dimension": 48, "include_prompt": True}, True),
        ({"pooling_mode": ["cls"], "pooling_mode_mean_tokens": True}, True),
        ({"pooling_mode": "mean", "pooling_mode_cls_token": True}, False),
        ({"pooling_mode_cls_token": False, "pooling_mode_max_tokens": False}, False),
    ],
)
def test_newer_keys_come_before_older_ones(pooling: dict[str, Any], first: bool, tmp_path: Path) -> None:
    path = folder(tmp_path / "model", pooling)
    model = gossamer.load(path, activations="f32")
    expected = states(path, model, TEXTS[0])
    np.testing.assert_allclose(model.embed(TEXTS[:1])[0], expected[0] if first else expected.mean(0), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("pooling", "modules", "what"),
    [
        ({"pooling_mode_max_tokens": True}, (), "pooling_mode_max_tokens is not supported"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, (), "pooling_mode_mean_tokens with"),
        ({"pooling_mode_mean_tokens": True}, ("Dense",), "models.Dense' is not supported"),
        ({"pooling_mode": "lasttoken"}, (), "pooling_mode 'lasttoken' is not supported"),
        ({"pooling_mode": ["mean", "cls"]}, (), r"pooling_mode \['mean', 'cls'\] is not supported"),
    ],
)
def test_other_ways_are_refused(pooling: dict[str, Any], modules: tuple[str, ...], what: str, tmp_path: Path) -> None:
    path = folder(tmp_path / "model", pooling, modules)
    with pytest.raises(GossamerError, match=what):
        gossamer.load(path)


def test_long_texts(tmp_path: Path) -> None:
    model = gossamer.load(folder(tmp_path / "model"), activations="f32")
    long = "The spider spins a thread of gossamer. " * 20
    with pytest.raises(GossamerError, match=r"text 2 has \d+ tokens, and the model's context holds 40"):
        model.embed([TEXTS[0], long])
    cut = model.decoder.encode([np.array(model.tokenizer.encode(long)[:40], np.int32)]).mean(0)
    np.testing.assert_allclose(model.embed([long], truncate=True)[0], cut / np.linalg.norm(cut), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "around", ["$A", "<|im_start|> $A", "$A <|im_end|>", "<|im_start|> $A <|im_end|>", "$A <|im_end|> <|im_start|>"]
)
def test_what_ends_a_text_stays_where_it_is_cut(tmp_path: Path, around: str) -> None:
    path = folder(tmp_path / "model")
    tokenizer = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    named = [(name, tokenizer.token_to_id(name)) for name in SPECIAL_TOKENS]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single=around, special_tokens=named)
    tokenizer.save(str(path / "tokenizer.json"))
    model = gossamer.load(path, activations="f32")
    long = "The spider spins a thread of gossamer. " * 20
    before, _, behind = (part.split() for part in around.partition("$A"))
    own = tokenizer.encode(long, add_special_tokens=False).ids[: 40 - len(before) - len(behind)]
    ids = [tokenizer.token_to_id(name) for name in before] + own + [tokenizer.token_to_id(name) for name in behind]
    cut = model.decoder.encode([np.array(ids, np.int32)]).mean(0)
    np.testing.assert_allclose(model.embed([long], truncate=True)[0], cut / np.linalg.norm(cut), atol=1e-5, rtol=0)


def test_what_the_files_beside_say_of_texts_holds_packed_too(tmp_path: Path) -> None:
    path = folder(tmp_path / "model", {"pooling_mode_mean_tokens": True})
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12, "do_lower_case": True}))
    gossamer.convert(path, tmp_path / "packed", weights="f32")
    for place in (path, tmp_path / "packed"):
        model = gossamer.load(place, activations="f32")
        expected = states(path, model, "the spider").mean(0)
        np.testing.assert_allclose(model.embed(["The SPIDER"])[0], expected, atol=1e-5, rtol=0)
        long = "the spider spins a thread of gossamer"
        with pytest.raises(GossamerError, match=r"text 1 has \d+ tokens, and the files beside the model allow 12"):
            model.embed([long])
        ids = model.tokenizer.encode(long)[:12]
        expected = states(path, model, model.tokenizer.decode(ids)).mean(0)
        np.testing.assert_allclose(model.embed([long], truncate=True)[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("sentence_roberta_config.json", {"max_seq_length": 12}),
        ("sentence_xlm-roberta_config.json", {"max_seq_length": 12, "do_lower_case": False}),
        ("tokenizer_config.json", {"model_max_length": 12}),
    ],
)
def test_lengths_stand_in_other_files_too(name: str, texts: dict[str, Any], tmp_path: Path) -> None:
    path = folder(tmp_path / "model", {"pooling_mode_mean_tokens": True})
    before = json.loads((path / name).read_text()) if (path / name).exists() else {}
    (path / name).write_text(json.dumps({**before, **texts}))
    with pytest.raises(GossamerError, match="the files beside the model allow 12"):
        gossamer.load(path).embed(["the spider spins a thread of gossamer"])


def test_what_sentence_transformers_6_writes_is_read(tmp_path: Path) -> None:
    path = folder(tmp_path / "model", {"pooling_mode": "mean"})
    (path / "sentence_bert_config.json").write_text(
        json.dumps(
            {
                "transformer_task": "feature-extraction",
                "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
                "module_output_name": "token_embeddings",
            }
        )
    )
    (path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 10**30}))
    assert gossamer.load(path).embed(TEXTS).shape == (3, 48)


@pytest.mark.parametrize(
    ("name", "said", "what"),
    [
        ("config_sentence_transformers.json", {"truncate_dim": 16}, "truncate_dim is not supported, got 16"),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "default_prompt_name is not"),
        (
            "sentence_bert_config.json",
            {"tokenizer_args": {"model_max_length": 8}},
            "tokenizer_args .* is not supported",
        ),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task 'fill-mask' is not"),
        ("sentence_bert_config.json", {"modality_config": {"image": {}}}, "modality_config .* is not supported"),
        ("sentence_albert_config.json", {"pad_to": 8}, "sentence_albert_config.json: pad_to 8 is not supported"),
        ("modules.json", [{"path": "0_T", "type": "m.Transformer"}], "a Transformer that lies in '0_T' is not"),
    ],
)
def test_what_changes_vectors_and_is_not_done_is_refused(name: str, said: Any, what: str, tmp_path: Path) -> None:
    path = folder(tmp_path / "model", {"pooling_mode_mean_tokens": True})
    (path / name).write_text(json.dumps(said))
    with pytest.raises(GossamerError, match=what):
        gossamer.load(path)


def test_padding_has_no_position_where_they_begin_behind_it(tmp_path: Path) -> None:
    bert, roberta = (gossamer.load(folder(tmp_path / kind, kind=kind)) for kind in ("bert", "roberta"))
    padding = bert.tokenizer.decode([1], special=True)
    assert bert.embed([f"a {padding} thread"]).shape == (1, 48)
    with pytest.raises(GossamerError, match="text 2 holds token 1, the padding token"):
        roberta.embed(["a thread", f"a {padding} thread"])


@pytest.mark.parametrize(
    ("texts", "what"),
    [
        ({"max_seq_length": "128"}, "sentence_bert_config.json: max_seq_length must be a whole number"),
        ({"do_lower_case": 1}, "sentence_bert_config.json: do_lower_case must be true or false"),
    ],
)
def test_nonsense_beside_is_refused(texts: dict[str, Any], what: str, tmp_path: Path) -> None:
    path = folder(tmp_path / "model", {"pooling_mode_mean_tokens": True})
    (path / "sentence_bert_config.json").write_text(json.dumps(texts))
    with pytest.raises(GossamerError, match=what):
        gossamer.load(path)


def test_bad_calls(tmp_path: Path) -> None:
    model = gossamer.load(folder(tmp_path / "model"))
    for texts, options, what in (
        ("one text", {}, "a list"),
        (["a", None], {}, "text 2 must be a text, got None"),
        ([""], {}, "text 1 has no tokens"),
        (["a"], {"pool": "max"}, "pool must be one of mean, cls"),
    ):
        with pytest.raises(GossamerError, match=what):
            model.embed(texts, **options)
    with pytest.raises(GossamerError, match="no encoder"):
        gossamer.load(tiny_llama(tmp_path / "llama")).embed(["a"])
    with pytest.raises(GossamerError, match="writes no text"):
        model.generate("hello")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(folder(tmp_path / "model"))
    assert main(["embed", "-m", path, *TEXTS]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == TEXTS
    expected = gossamer.load(path).embed(TEXTS)
    np.testing.assert_array_equal(np.array([line["embedding"] for line in lines], np.float32), expected)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(TEXTS) + "\n"))
    assert main(["embed", "-m", path, "-o", str(tmp_path / "vectors.npy")]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "vectors.npy"), expected)
    assert main(["embed", "-m", path, TEXTS[0], "-o", str(tmp_path / "vectors.npy")]) == 1
    assert "vectors.npy: exists already; --force replaces it" in capsys.readouterr().err
    assert main(["embed", "-m", path, TEXTS[0], "-o", str(tmp_path / "vectors.npy"), "--force"]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "vectors.npy"), expected[:1])
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["embed", "-m", path]) == 1
    assert "there is no text" in capsys.readouterr().err


def scored(path: Path, *lines: Any) -> str:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


PAIRS = [
    {"a": TEXTS[0], "b": TEXTS[2], "score": 2, "id": 7},
    {"a": TEXTS[0], "b": TEXTS[1], "score": 1.5},
    {"a": TEXTS[1], "b": TEXTS[1], "score": 5.0},
    {"a": TEXTS[2], "b": TEXTS[1], "score": 1.5},
    {"a": "net", "b": TEXTS[2], "score": -1, "metadata": {"x": 1}},
]


@pytest.mark.parametrize("options", [{}, {"pool": "cls"}])
def test_scored_pairs_are_held_against_cosines(
    tmp_path: Path, options: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    path, file = str(folder(tmp_path / "model")), scored(tmp_path / "p.jsonl", *PAIRS[:2], "", *PAIRS[2:])
    model = gossamer.load(path)
    one, other = (model.embed([pair[name] for pair in PAIRS], **options).astype(float) for name in ("a", "b"))
    cosines = (one * other).sum(1)
    # By hand: no cosines are equal; scores of 1.5 share ranks 2 and 3.
    ranks, right = cosines.argsort().argsort() + 1.0, np.array([4, 2.5, 5, 2.5, 1])
    expected = np.corrcoef(ranks, right)[0, 1]
    line = ["eval", path, "--pairs", file, *(part for name, value in options.items() for part in (f"--{name}", value))]
    assert main([*line, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document.pop("seconds") > 0
    assert document.pop("value") == pytest.approx(expected, abs=1e-12)
    assert document == {"model": path, "pairs": file, "metric": "spearman", "samples": 5}
    assert main([*line, "--limit", "3"]) == 0
    three = np.corrcoef(cosines[:3].argsort().argsort(), right[:3].argsort().argsort())[0, 1]
    assert capsys.readouterr().out.startswith(f"spearman {three:.4f} over 3 pairs, ")


def test_pairs_that_say_nothing_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, pair = str(folder(tmp_path / "model")), PAIRS[0]
    long = {**pair, "b": "net " * 60}
    for lines, said in (
        (("{",), "p.jsonl:1: not valid JSON"),
        ((pair, "", "[]"), "p.jsonl:3: must be a JSON object with a, b and score, got []"),
        (({"a": "x", "score": 1},), "p.jsonl:1: has no b; a pair has a, b and score"),
        ((pair, {**pair, "scores": 1}), "p.jsonl:2: 'scores' is no field of a pair"),
        (({**pair, "a": 3},), "p.jsonl:1: a must be a text, got 3"),
        (({**pair, "score": True},), "p.jsonl:1: score must be a finite number, got True"),
        (('{"a": "x", "b": "y", "score": NaN}',), "p.jsonl:1: score must be a finite number, got nan"),
        (({**pair, "a": ""},), "p.jsonl:1: text 1 has no tokens"),
        ((pair, long), "p.jsonl:2: text 2 has "),
        ((pair, PAIRS[1] | {"score": 2}), "all scores of 2 pairs are equal"),
        ((pair, pair | {"score": 9}), "all cosines of 2 pairs are equal"),
        ((), "p.jsonl: holds no samples"),
    ):
        assert main(["eval", path, "--pairs", scored(tmp_path / "p.jsonl", *lines)]) == 1
        out, err = capsys.readouterr()
        assert said in err.splitlines()[-1]
        assert not out
    file = scored(tmp_path / "p.jsonl", pair, long | {"score": 1})
    assert main(["eval", path, "--pairs", file, "--truncate"]) == 0
    assert main(["eval", str(tiny_llama(tmp_path / "llama")), "--pairs", file]) == 1
    assert "error: llama is no encoder: it gives no vectors of texts" in capsys.readouterr().err
    for options, said in (
        (["--pairs", file, "--context", "9"], "argument --context: goes with --text"),
        (["--text", file, "--pool", "cls"], "argument --pool: goes with --pairs"),
        (["--text", file, "--limit", "1"], "argument --limit: goes with --task or --pairs"),
        (["--task", file, "--truncate"], "argument --truncate: goes with --pairs"),
    ):
        with pytest.raises(SystemExit):
            main(["eval", path, *options])
        assert said in capsys.readouterr().err
