"""Data to finetune on: documents, windows, their order; and samples that a model writes itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer
from gossamer.checkpoints import open_checkpoint
from gossamer.cli import main
from gossamer.errors import GossamerError
from gossamer.finetune import samples
from gossamer.finetune.data import Data, prepare
from gossamer.finetune.samples import read_samples, sample
from tiny import EOS_ID, tiny_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "dense")


def texts(folder: Path, count: int) -> Path:
    folder.mkdir()
    for index in range(count):
        (folder / f"{index:03}.txt").write_text(f"Text {index} of the web. " * (1 + index % 5), encoding="utf-8")
    return folder


def read(path: Path, model: Path, work: Path, **options: Any) -> Data:
    work.mkdir(exist_ok=True)
    tokenizer = open_checkpoint(model).tokenizer()
    return prepare([path], tokenizer, work, **({"length": 16, "seed": 0, "validation": 0.1} | options))


def documents(tokens: Any) -> set[bytes]:
    ends = np.flatnonzero(tokens == EOS_ID) + 1
    return {part.tobytes() for part in np.split(np.asarray(tokens), ends) if len(part)}


def test_documents_end_with_their_token_and_are_set_aside_whole(model: Path, tmp_path: Path) -> None:
    data = read(texts(tmp_path / "texts", 40), model, tmp_path / "work")
    tokenizer = open_checkpoint(model).tokenizer()
    expected = {
        np.array([*tokenizer.encode(path.read_text("utf-8")), EOS_ID], np.int32).tobytes()
        for path in (tmp_path / "texts").iterdir()
    }
    assert len(documents(data.validation)) == 4
    assert documents(data.train) | documents(data.validation) == expected
    assert not documents(data.train) & documents(data.validation)
    other = read(tmp_path / "texts", model, tmp_path / "other", seed=1)
    assert documents(other.validation) != documents(data.validation)
    assert len(read(tmp_path / "texts", model, tmp_path / "none", validation=0.0).validation) == 0


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n", "\n"])
def test_a_text_that_comes_alone_has_documents_too(model: Path, tmp_path: Path, end: str) -> None:
    lines = [f"Line {number} of a text." for number in range(200)]
    (tmp_path / "text.txt").write_bytes(end.join(lines).encode())
    data = read(tmp_path / "text.txt", model, tmp_path / "work")
    count = sum(np.count_nonzero(tokens == EOS_ID) for tokens in (data.train, data.validation))
    assert 32 <= count <= 64
    assert np.count_nonzero(data.validation == EOS_ID) == round(0.1 * count)


def test_every_pass_has_every_window_once_in_an_order_of_its_own(model: Path, tmp_path: Path) -> None:
    data = read(texts(tmp_path / "texts", 40), model, tmp_path / "work")
    passes = [data.batch(number * data.windows, data.windows).tokens.numpy() for number in (0, 1)]
    windows = data.train[: data.windows * 16].reshape(-1, 16)
    for rows in passes:
        assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, windows.tolist()))
    assert not np.array_equal(*passes)
    both = data.batch(data.windows - 2, 4)
    np.testing.assert_array_equal(both.tokens, np.concatenate([passes[0][-2:], passes[1][:2]]))
    np.testing.assert_array_equal(data.train[both.places.numpy()], both.tokens)
    assert both.real.all()
    assert both.asked.all()
    np.testing.assert_array_equal(both.targets[:, :-1], both.tokens[:, 1:])
    assert (both.targets[:, -1] == -1).all()


def test_validation_windows_cover_the_end_and_pad_it() -> None:
    data = Data(np.arange(64, dtype=np.int32), np.arange(100, 125, dtype=np.int32), 10, 0)
    (batch,) = data.validation_batches(9, 4)
    np.testing.assert_array_equal(batch.tokens[batch.real], np.arange(100, 125))
    assert batch.real.sum(1).tolist() == [10, 10, 5]
    assert batch.targets[2].tolist() == [121, 122, 123, 124, *[-1] * 6]
    assert (batch.places == -1).all()
    batches = list(data.validation_batches(2, 1))
    assert [int(one.tokens[0, 0]) for one in batches] == [100, 120]
    assert not list(Data(data.train, data.train[:0], 10, 0).validation_batches(4, 4))


def test_a_single_text_is_cut_into_documents(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(f"Paragraph {i} about the web and the spider." for i in range(500)), encoding="utf-8")
    data = read(path, model, tmp_path / "work")
    both = len(documents(data.train)) + len(documents(data.validation))
    assert 50 <= both <= 64
    assert len(documents(data.validation)) == round(both * 0.1)


def test_samples_go_on_where_a_run_stopped(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = gossamer.load(model)
    monkeypatch.setattr(samples, "_PART_WINDOWS", 3)
    assert sample(teacher, tmp_path / "whole", tokens=150, length=20, seed=4) == 160
    whole = np.concatenate(list(read_samples(tmp_path / "whole")))
    assert whole.shape == (8, 20)

    def stop(done: int, _total: int, _what: str) -> None:
        if done > 80:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(teacher, tmp_path / "parts", tokens=150, length=20, seed=4, progress=stop)
    assert [part.shape for part in read_samples(tmp_path / "parts")] == [(3, 20)]
    sample(teacher, tmp_path / "parts", tokens=150, length=20, seed=4)
    np.testing.assert_array_equal(np.concatenate(list(read_samples(tmp_path / "parts"))), whole)
    sample(teacher, tmp_path / "parts", tokens=180, length=20, seed=4)  # more of the same
    np.testing.assert_array_equal(np.concatenate(list(read_samples(tmp_path / "parts")))[:8], whole)
    with pytest.raises(GossamerError, match="was begun with seed 4, this run has 5; --force begins anew"):
        sample(teacher, tmp_path / "parts", tokens=150, length=20, seed=5)
    assert sample(teacher, tmp_path / "parts", tokens=60, length=20, seed=5, force=True) == 60
    assert sample(teacher, tmp_path / "parts", tokens=80, length=20, seed=5, force=True) == 80  # goes on: the same run
    assert json.loads((tmp_path / "parts" / "samples.json").read_text("utf-8"))["seed"] == 5
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_samples_do_not_go_on_with_other_weights_of_the_same_name(model: Path, tmp_path: Path) -> None:
    sample(gossamer.load(model), tmp_path / "parts", tokens=60, length=20)
    other = tiny_llama(tmp_path / "other" / model.name, seed=77)
    for teacher in (gossamer.load(other), gossamer.load(model, weights="int4")):
        with pytest.raises(GossamerError, match="was begun with other weights, or multiplied in another way"):
            sample(teacher, tmp_path / "parts", tokens=100, length=20)
    assert sample(gossamer.load(other), tmp_path / "parts", tokens=40, length=20, force=True) == 40
    assert sample(gossamer.load(other), tmp_path / "parts", tokens=60, length=20) == 60


def test_samples_of_before_parts_had_sizes_go_on(model: Path, tmp_path: Path) -> None:
    teacher = gossamer.load(model)
    sample(teacher, tmp_path / "parts", tokens=60, length=20)
    about = tmp_path / "parts" / "samples.json"
    written = json.loads(about.read_text(encoding="utf-8"))
    assert written.pop("part_windows") == 48
    assert written.pop("logits")
    about.write_text(json.dumps(written), encoding="utf-8")
    assert sample(teacher, tmp_path / "parts", tokens=100, length=20) == 100


def test_samples_are_data(model: Path, tmp_path: Path) -> None:
    sample(gossamer.load(model), tmp_path / "samples", tokens=800, length=20)
    data = read(tmp_path / "samples", model, tmp_path / "work", length=20)
    assert len(data.validation) == 4 * 20
    assert len(data.train) == 36 * 20
    rows = {row.tobytes() for row in np.concatenate(list(read_samples(tmp_path / "samples")))}
    assert {row.tobytes() for row in np.asarray(data.train).reshape(-1, 20)} <= rows


def test_samples_that_do_not_fit(model: Path, tmp_path: Path) -> None:
    teacher = gossamer.load(model)
    with pytest.raises(GossamerError, match="length 129 is more than the model's context of 128"):
        sample(teacher, tmp_path / "samples", tokens=10, length=129)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(GossamerError, match="used: exists already and holds more than a model or samples"):
        sample(teacher, tmp_path / "used", tokens=10, length=20)
    sample(teacher, tmp_path / "samples", tokens=100, length=20)
    other = tiny_llama(tmp_path / "other")
    tokenizer = other / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text("utf-8").replace("<|im_start|>", "<|begin|>"), encoding="utf-8")
    with pytest.raises(GossamerError, match="samples: the samples were written with another tokenizer"):
        read(tmp_path / "samples", other, tmp_path / "work")
    part = next((tmp_path / "samples").glob("*.safetensors"))
    part.write_bytes(part.read_bytes()[:-4])
    with pytest.raises(GossamerError, match=r"000000\.safetensors: truncated"):
        read(tmp_path / "samples", model, tmp_path / "work")


def test_the_command(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(model), str(tmp_path / "samples"), "--tokens", "0.1k", "--length", "25"]) == 0
    assert "100 tokens in windows of 25" in capsys.readouterr().out
    for wrong in ("0", "1.5", "many"):
        with pytest.raises(SystemExit) as caught:
            main(["sample", str(model), str(tmp_path / "no"), "--tokens", wrong])
        assert caught.value.code == 2


def test_conversations_become_samples_and_a_text(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said, text = tmp_path / "said.txt", tmp_path / "text.txt"
    said.write_text("the spider spins\n\nthe thread\n", encoding="utf-8")
    command = ["sample", str(model), str(tmp_path / "samples"), "--tokens", "100", "--length", "25"]
    options = ["--temperature", "0.7", "--documents", "0", "--chat", str(said), "--text", str(text)]
    assert main([*command, *options]) == 0
    tokenizer = gossamer.load(model).tokenizer
    windows = np.concatenate(list(read_samples(tmp_path / "samples")))
    assert text.read_text(encoding="utf-8") == "\n\n".join(tokenizer.decode(w, special=True) for w in windows) + "\n"
    openings = [tokenizer.chat([{"role": "user", "content": each}]) for each in ("the spider spins", "the thread")]
    for window in windows.tolist():
        assert any(window[: len(opening)] == opening[:25] for opening in openings)
    text.write_text("of somebody else")
    assert main([*command, *options]) == 1
    assert f"{text}: exists already; --force replaces it" in capsys.readouterr().err
    assert text.read_text() == "of somebody else"
    text.unlink()
    for option, other in (("temperature", "0.8"), ("documents", "0.5")):  # what was begun otherwise is not gone on with
        again = [other if options[i - 1] == f"--{option}" else each for i, each in enumerate(options)]
        assert main([*command, *again]) == 1
        assert f"was begun with {option}" in capsys.readouterr().err


def test_conversations_without_a_share_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(GossamerError, match="conversations have no share"):
        sample(gossamer.load(model), tmp_path / "parts", tokens=60, length=20, conversations=[["hi"]], documents=1)


def test_samples_of_unusable_options(model: Path, tmp_path: Path) -> None:
    teacher = gossamer.load(model)
    for options, message in (
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"documents": 1.5}, "documents must be a share from 0 to 1"),
    ):
        with pytest.raises(GossamerError, match=message):
            sample(teacher, tmp_path / "samples", tokens=10, length=20, **options)
    teacher.tokenizer.chat_template = None
    with pytest.raises(GossamerError, match="has no chat template for conversations"):
        sample(teacher, tmp_path / "samples", tokens=10, length=20, conversations=[["hello"]])
    assert not (tmp_path / "samples").exists()
