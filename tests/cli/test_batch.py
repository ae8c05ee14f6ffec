"""`gossamer batch`: lines in, lines out, whatever is wrong with some and however often it is killed."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from checkout import ROOT
from commands import usage_error
from fakes import FakeDecoder, decoder_of, fake_model
from gossamer.cli import main
from gossamer.generation.model import Model
from tiny import tiny_llama


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.delenv("GOSSAMER_DEBUG", raising=False)

    def serve(model: Model) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []
        monkeypatch.setattr("gossamer.loading.load", lambda _name, **options: (calls.append(options), model)[1])
        return calls

    return serve


def write(path: Path, *lines: Any) -> Path:
    """Writes lines: objects as JSON, bytes as they are."""
    path.write_bytes(b"".join(one if isinstance(one, bytes) else json.dumps(one).encode() + b"\n" for one in lines))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(tmp_path: Path, *argv: str) -> int:
    return main(["batch", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), *argv])


def failure(capsys: pytest.CaptureFixture[str], tmp_path: Path, *argv: str) -> str:
    """Runs a command line that must fail; returns why."""
    assert run(tmp_path, *argv) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


def test_there_is_a_line_for_each_line_in_order(served, tmp_path, capsys):
    calls = served(fake_model(template=True))
    messages = [{"role": "system", "content": "b"}, {"role": "user", "content": "c"}]
    write(
        tmp_path / "in.jsonl",
        {"prompt": "a", "id": "first", "max_new_tokens": 9},
        {"messages": messages, "stop": ["c", "b"]},
        {"prompt": "e", "id": 7, "stop": "h"},
    )
    assert run(tmp_path, "-n", "3", "--batch", "2", "--kv-limit", "1.5M") == 0
    assert calls[0]["kv_limit"] == 1_500_000
    out, _ = capsys.readouterr()
    assert out.startswith(f"{tmp_path / 'out.jsonl'}: 3 lines; 3 tokens, ")
    # After "<a>", the last token of each prompt, comes the end.
    assert read(tmp_path / "out.jsonl") == [
        {"line": 1, "id": "first", "prompt": "a", "text": "", "finish": "eos", "prompt_tokens": 3, "new_tokens": 1},
        {"line": 2, "messages": messages, "text": "", "finish": "eos", "prompt_tokens": 4, "new_tokens": 1},
        {"line": 3, "id": 7, "prompt": "e", "text": "", "finish": "eos", "prompt_tokens": 3, "new_tokens": 1},
    ]


def test_options_of_a_line_hold_for_it_alone(served, tmp_path):
    served(fake_model())
    write(tmp_path / "in.jsonl", {"prompt": "a", "max_new_tokens": 5}, {"prompt": "a"}, {"prompt": "b", "stop": "e"})
    assert run(tmp_path, "-n", "3", "--stop", "d") == 0
    assert [(line["text"], line["finish"]) for line in read(tmp_path / "out.jsonl")] == [
        ("bc", "stop"), ("bc", "stop"), ("cd", "stop"),
    ]  # fmt: skip


BAD: list[tuple[Any, str]] = [
    (b"\n", "the line is empty"),
    (b"{\n", "not valid JSON: "),
    (b"\xff\n", "not UTF-8: invalid start byte at byte 1"),
    (b'{"prompt": "a", "prompt": "b"}\n', "not valid JSON: key 'prompt' stands twice"),
    (b'{"prompt": "a", "temperature": NaN}\n', "not valid JSON: Out of range float values"),
    ([1], "a line must be a JSON object with prompt or messages, got [1]"),
    ({"id": 3}, "a line must have either prompt or messages"),
    ({"prompt": "a", "messages": []}, "a line must have either prompt or messages"),
    ({"prompt": ["a"]}, "prompt must be a text, got ['a']"),
    ({"prompt": ""}, "the prompt is empty"),
    ({"messages": "a"}, "messages must be a list of objects with role and content, got 'a'"),
    ({"messages": [{"role": "user", "content": "a"}]}, "fake has no chat template"),
    ({"prompt": "a", "id": 1.5}, "id must be a text or a whole number, got 1.5"),
    ({"prompt": "a", "max_tokens": 5}, "'max_tokens' is no key of a line; did you mean max_new_tokens?"),
    ({"prompt": "a", "temperature": "hot"}, "temperature must be a number, got 'hot'"),
    ({"prompt": "a", "temperature": 10**400}, "temperature must be at least 0, and finite"),
    ({"prompt": "a", "beams": 2, "length_penalty": 1000}, "length_penalty must be between -50 and 50"),
    ({"prompt": "a", "max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
    ({"prompt": "abcdefghi"}, "the prompt has 9 tokens, and the model's context holds 8"),
]


def test_what_is_wrong_with_a_line_is_its_answer(served, tmp_path, capsys):
    served(fake_model(context=8))
    good = {"prompt": "a", "max_new_tokens": 2}
    write(tmp_path / "in.jsonl", *(line for bad, _ in BAD for line in (bad, good)))
    assert run(tmp_path, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["lines"], document["errors"], document["new_tokens"]) == (2 * len(BAD), len(BAD), 2 * len(BAD))
    lines = read(tmp_path / "out.jsonl")
    assert [line["line"] for line in lines] == list(range(1, 2 * len(BAD) + 1))
    assert [line["text"] for line in lines[1::2]] == ["bc"] * len(BAD)
    for line, (bad, message) in zip(lines[::2], BAD, strict=True):
        assert line["error"].startswith(message)
        assert "text" not in line
        if isinstance(bad, dict) and bad.get("id") == 3:
            assert line["id"] == 3


def test_a_file_without_a_last_newline_and_one_without_lines(served, tmp_path):
    served(fake_model())
    write(tmp_path / "in.jsonl", {"prompt": "a"}, b'{"prompt": "b"}')
    assert run(tmp_path, "-n", "1") == 0
    assert [line["text"] for line in read(tmp_path / "out.jsonl")] == ["b", "c"]
    write(tmp_path / "in.jsonl")
    assert run(tmp_path, "--force") == 0
    assert (tmp_path / "out.jsonl").read_bytes() == b""


def test_a_system_message_stands_before_lines_without_one(served, tmp_path, capsys):
    model = fake_model(template=True)
    served(model)
    own = [{"role": "system", "content": "j"}, {"role": "user", "content": "b"}]
    write(tmp_path / "in.jsonl", {"prompt": "a"}, {"messages": own}, {"messages": own[1:]})
    assert run(tmp_path, "--system", "hi", "--batch", "1") == 0
    words = model.tokenizer.words  # type: ignore[attr-defined]
    fed = ["".join(words[token] for token in tokens) for _, tokens in decoder_of(model).steps if len(tokens) < 9]
    assert fed == ["hi<u>a<a>", "j<u>b<a>", "hi<u>b<a>"]
    assert "messages" not in read(tmp_path / "out.jsonl")[0]
    capsys.readouterr()
    assert "--system: not allowed with argument --raw" in usage_error(
        capsys, "batch", "a", "b", "--system", "h", "--raw"
    )
    served(fake_model())
    assert "fake has no chat template" in failure(capsys, tmp_path, "--system", "h", "--force")


def test_drafts_and_beams_exclude_each_other(served, tmp_path, capsys):
    served(fake_model())
    write(tmp_path / "in.jsonl", {"prompt": "a"})
    assert "beams and draft ngram exclude each other" in failure(capsys, tmp_path, "--beams", "2", "--draft", "ngram")
    assert not (tmp_path / "out.jsonl").exists()


def test_files_that_cannot_be_used(served, tmp_path, capsys):
    served(fake_model())
    assert "in.jsonl: no such file" in failure(capsys, tmp_path)
    write(tmp_path / "in.jsonl", {"prompt": "a"})
    assert "in.jsonl: is what is read" in _fail(capsys, tmp_path / "in.jsonl", tmp_path / "in.jsonl", "--force")
    assert "is no file" in _fail(capsys, tmp_path / "in.jsonl", tmp_path)
    assert "is no file" in _fail(capsys, tmp_path, tmp_path / "out.jsonl")
    assert run(tmp_path) == 0
    before = (tmp_path / "out.jsonl").read_bytes()
    assert "out.jsonl: exists already; --force replaces it" in failure(capsys, tmp_path)
    assert (tmp_path / "out.jsonl").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]
    for wrong in ("0", "x", "-1", "2T"):
        assert "--kv-limit: must be a number of bytes" in usage_error(capsys, "batch", "a", "b", f"--kv-limit={wrong}")


def _fail(capsys: pytest.CaptureFixture[str], src: Path, dst: Path, *argv: str) -> str:
    assert main(["batch", str(src), str(dst), *argv]) == 1
    return str(capsys.readouterr().err)


LINES = [{"prompt": "abcdefghij"[: 1 + i % 9], "temperature": float(i % 2), "max_new_tokens": 3 + i} for i in range(14)]


def interrupted_after(model: Model, steps: int) -> Model:
    decoder = decoder_of(model)
    step = decoder.step

    def interrupted(batch: Any, all_logits: bool = False) -> Any:
        if len(decoder.steps) >= steps:
            raise KeyboardInterrupt
        return step(batch, all_logits)

    decoder.step = interrupted  # type: ignore[method-assign]
    return model


@pytest.mark.parametrize("torn", [b"", b'{"line": 5, "prom', b'{"line": 3, "text": "x"}\n', b"\x00\x00\n"])
def test_a_run_that_was_stopped_goes_on_behind_the_last_whole_line(served, tmp_path, capsys, torn: bytes):
    write(tmp_path / "in.jsonl", *LINES)
    served(fake_model())
    assert run(tmp_path, "--batch", "3") == 0
    expected = (tmp_path / "out.jsonl").read_bytes()
    (tmp_path / "out.jsonl").unlink()
    served(interrupted_after(fake_model(), 40))
    capsys.readouterr()
    assert run(tmp_path, "--batch", "3") == 130
    assert not (tmp_path / "out.jsonl").exists()
    part = tmp_path / "out.jsonl.part"
    assert capsys.readouterr().err == f"gossamer: stopped; the same command goes on from {part}\n"
    done = part.read_bytes()
    kept = done.count(b"\n") - 1
    assert 0 < kept < len(LINES)
    assert expected.startswith(done.split(b"\n", 1)[1])
    part.write_bytes(done + torn)
    model = fake_model()
    served(model)
    capsys.readouterr()
    assert run(tmp_path, "--batch", "5") == 0
    assert f"14 lines, {kept} of them there already; " in capsys.readouterr().out
    assert (tmp_path / "out.jsonl").read_bytes() == expected
    assert not part.exists()


def test_a_run_that_was_stopped_before_its_first_line_begins(served, tmp_path):
    write(tmp_path / "in.jsonl", {"prompt": "a"})
    (tmp_path / "out.jsonl.part").write_bytes(b'{"prompts": "12')
    served(fake_model())
    assert run(tmp_path, "-n", "1") == 0
    assert [line["text"] for line in read(tmp_path / "out.jsonl")] == ["b"]


@pytest.mark.parametrize("foreign", [b"notes of mine\n", b"notes", b"[1]\n"])
def test_what_no_run_left_is_not_written_over(served, tmp_path, capsys, foreign):
    write(tmp_path / "in.jsonl", {"prompt": "a"})
    (tmp_path / "out.jsonl.part").write_bytes(foreign)
    served(fake_model())
    assert "was not left by a run that was stopped; --force replaces it" in failure(capsys, tmp_path)
    assert (tmp_path / "out.jsonl.part").read_bytes() == foreign
    assert run(tmp_path, "--force") == 0


def test_a_run_of_other_prompts_options_or_another_model_is_not_gone_on_with(served, tmp_path, capsys):
    write(tmp_path / "in.jsonl", *LINES)
    served(interrupted_after(fake_model(), 40))
    assert run(tmp_path) == 130
    capsys.readouterr()
    done = (tmp_path / "out.jsonl.part").read_bytes()
    served(fake_model())
    assert "had other options; --force begins anew" in failure(capsys, tmp_path, "--top-k", "3")
    write(tmp_path / "in.jsonl", *LINES[1:])
    assert "had other prompts; --force" in failure(capsys, tmp_path)
    write(tmp_path / "in.jsonl", *LINES)
    served(fake_model("ab"))
    assert "had other model; --force" in failure(capsys, tmp_path)
    assert (tmp_path / "out.jsonl.part").read_bytes() == done
    assert run(tmp_path, "--force") == 0
    assert len(read(tmp_path / "out.jsonl")) == len(LINES)


def test_a_run_that_died_while_it_put_the_answers_in_place_is_finished(served, tmp_path, monkeypatch):
    write(tmp_path / "in.jsonl", *LINES)
    served(fake_model())
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda _self: (_ for _ in ()).throw(KeyboardInterrupt()))
        assert run(tmp_path) == 130
    expected = (tmp_path / "out.jsonl").read_bytes()
    assert (tmp_path / "out.jsonl.part").exists()
    model = fake_model()
    served(model)
    assert run(tmp_path) == 0
    assert (tmp_path / "out.jsonl").read_bytes() == expected
    assert len(decoder_of(model).steps) == 1, "the model was told from others, and not asked again"
    assert not (tmp_path / "out.jsonl.part").exists()


PROGRAM = """
import sys, time
sys.path[:0] = {paths!r}
from fakes import fake_model
import gossamer.loading
from gossamer import cli
model = fake_model()
step = model.decoder.step
def slow(batch, all_logits=False):
    time.sleep(0.01)
    return step(batch, all_logits)
model.decoder.step = slow
gossamer.loading.load = lambda name, **options: model
raise SystemExit(cli.main())
"""


def test_killed_again_and_again_it_gives_the_same_file(served, tmp_path):
    import gossamer

    write(tmp_path / "in.jsonl", *LINES)
    served(fake_model())
    assert run(tmp_path, "--batch", "2") == 0
    expected = (tmp_path / "out.jsonl").read_bytes()
    (tmp_path / "out.jsonl").unlink()
    paths = [str(ROOT / "tests" / "support"), *(str(Path(path).parent) for path in gossamer.__path__)]
    line = [sys.executable, "-c", PROGRAM.format(paths=paths), "batch"]
    line += [str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), "--batch", "2"]
    part, kills, had = tmp_path / "out.jsonl.part", 0, 0
    while not (tmp_path / "out.jsonl").exists():
        with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
            while running.poll() is None:
                lines = part.read_bytes().count(b"\n") if part.exists() else 0
                if lines > had + 4:
                    had = lines
                    running.send_signal(signal.SIGKILL)
                    kills += 1
                    break
                time.sleep(0.005)
        assert running.returncode in (0, -signal.SIGKILL)
    assert kills >= 2
    assert (tmp_path / "out.jsonl").read_bytes() == expected


@pytest.mark.slow
def test_killed_ten_times_a_native_model_gives_the_same_file(tmp_path, monkeypatch):
    """At seeded moments behind the first new line, the end of a line being written among them."""
    monkeypatch.setenv("GOSSAMER_MEASURE", "0")
    tiny_llama(tmp_path / "m", max_position_embeddings=400)
    asked = [{"prompt": f"Line {i}", "temperature": float(i % 2), "max_new_tokens": 300} for i in range(120)]
    write(tmp_path / "in.jsonl", *asked)
    rng, out, whole = random.Random(1), tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    line = [
        sys.executable,
        "-m",
        "gossamer",
        "batch",
        "-m",
        str(tmp_path / "m"),
        "--batch",
        "2",
        str(tmp_path / "in.jsonl"),
    ]
    subprocess.run([*line, str(whole)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    part = tmp_path / "out.jsonl.part"
    for _ in range(10):
        had = part.stat().st_size if part.exists() else 0
        with subprocess.Popen([*line, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
            while not (part.exists() and part.stat().st_size > had):
                assert running.poll() is None
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.1))
            running.kill()
        assert running.returncode == -signal.SIGKILL
    subprocess.run([*line, str(out)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert out.read_bytes() == whole.read_bytes()


def test_two_runs_do_not_write_the_same_file(served, tmp_path, capsys):
    model = fake_model()
    served(model)
    write(tmp_path / "in.jsonl", *LINES)
    decoder = model.decoder
    assert isinstance(decoder, FakeDecoder)
    step, told = decoder.step, []

    def second(batch: Any, all_logits: bool = False) -> Any:
        if not told and len(decoder.steps) > 5:
            told.append(True)
            told.append(failure(capsys, tmp_path))
        return step(batch, all_logits)

    decoder.step = second  # type: ignore[method-assign]
    assert run(tmp_path) == 0
    assert "out.jsonl.part: another run is writing it" in told[1]


def test_a_line_may_ask_for_every_option_and_gets_log_probabilities(served, tmp_path):
    served(fake_model())
    own = {"presence_penalty": 0.5, "frequency_penalty": 0.1, "typical_p": 0.9, "logit_bias": {"4": -100, "0": -100}}
    write(
        tmp_path / "in.jsonl",
        {"prompt": "abc", "max_new_tokens": 2, "logprobs": 1, **own},
        {"prompt": "a", "max_new_tokens": 1},
        {"prompt": "a", "logit_bias": {"99": 1}},
        {"prompt": "a", "typical_p": 0},
    )
    assert run(tmp_path) == 0
    first, second, third, fourth = read(tmp_path / "out.jsonl")
    assert not first["text"].startswith("d"), "which the bias forbids"
    assert len(first["logprobs"]) == len(first["logprobs"][0]["top"]) + 1 == 2
    assert first["logprobs"][0]["top"][0]["text"] == "d", "what the model itself finds likeliest"
    assert second == {"line": 2, "prompt": "a", "text": "b", "finish": "length", "prompt_tokens": 1, "new_tokens": 1}
    assert third["error"] == "logit_bias: token 99 is outside the model's vocabulary of 13 tokens"
    assert fourth["error"] == "typical_p must be above 0 and at most 1, got 0"
