"""The command line: what goes to stdout and stderr, exit codes, usage errors, interrupts, pipes."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from commands import usage_error
from fakes import FakeDecoder, fake_model
from gossamer.cli import main
from gossamer.cli.progress import progress
from gossamer.errors import GossamerError
from gossamer.generation.adapters import Adapters
from gossamer.generation.model import Model
from gossamer.tables import table


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Callable[[Model], list[dict[str, Any]]]:
    """Makes every command load the given model; returns the list that the calls of `load` go into."""
    monkeypatch.delenv("GOSSAMER_DEBUG", raising=False)

    def serve(model: Model) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []

        def load(name: str, **options: Any) -> Model:
            calls.append({"model": name, **options})
            return model

        monkeypatch.setattr("gossamer.loading.load", load)
        return calls

    return serve


def failure(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Runs a command that must fail; returns the one line that says why."""
    assert main(argv) == 1
    _, err = capsys.readouterr()
    assert err.startswith("gossamer: error: ")
    assert err.count("\n") == 1
    return err


def test_generate_prints_the_text_and_nothing_else(served, capsys):
    calls = served(fake_model())
    assert main(["generate", "ab", "-m", "some/model", "-n", "3", "--threads", "2", "--kv", "f16"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("cde\n", "")
    assert calls[0]["model"] == "some/model"
    assert (calls[0]["threads"], calls[0]["kv"], calls[0]["activations"]) == (2, "f16", "auto")
    assert calls[0]["weights"] is None


def test_generate_passes_every_sampling_option_on(served, monkeypatch):
    model = fake_model()
    served(model)
    seen: dict[str, Any] = {}
    monkeypatch.setattr(model, "stream", lambda prompt, **options: seen.update(options, prompt=prompt) or iter(()))
    line = "--temperature 0.7 --top-k 40 --top-p 0.9 --min-p 0.05 --repeat-penalty 1.1 --seed 7 -n 9 --stop x --stop yy"
    line += " --typical-p 0.8 --frequency-penalty 0.3 --presence-penalty -0.2 --logit-bias 3=-100 --logit-bias 4=1.5"
    assert main(["generate", "ab", "--raw", "--context-shift", "3", "--repeat-window", "0", *line.split()]) == 0
    del seen["cancel"], seen["prompt_cache"]
    assert seen.pop("draft").kind == "auto"
    assert seen == {
        "typical_p": 0.8, "frequency_penalty": 0.3, "presence_penalty": -0.2, "logit_bias": [(3, -100.0), (4, 1.5)],
        "prompt": "ab", "chat": False, "max_new_tokens": 9, "temperature": 0.7, "top_k": 40, "top_p": 0.9,
        "min_p": 0.05, "repeat_penalty": 1.1, "repeat_window": 0, "seed": 7, "stop": ["x", "yy"], "context_shift": 3,
    }  # fmt: skip
    seen.clear()
    assert main(["generate", "ab", "--draft", "off"]) == 0
    del seen["cancel"], seen["prompt_cache"]
    assert seen.pop("draft").kind == "off"
    assert seen == {"prompt": "ab", "chat": None}, "what is not given is left to the model"


@pytest.mark.parametrize(
    "command", ["generate ab -m some/model", "chat -m some/model", "eval some/model --text T", "bench M"]
)
def test_adapters_are_loaded_with_their_weights(command: str, served, capsys, monkeypatch, tmp_path):
    (tmp_path / "odd=2").mkdir()
    loaded: list[tuple[str, str, float]] = []

    def load(_: Adapters, path: str, name: str, *, weight: float) -> None:
        loaded.append((path, name, weight))
        if len(loaded) == 4:
            raise GossamerError("enough")

    monkeypatch.setattr(Adapters, "load", load)
    served(fake_model(template=True))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "T").write_text("ab", encoding="utf-8")
    given = ("a", "b/c=0.5", "d=e=-1", "odd=2")
    line = [*command.split(), *(part for path in given for part in ("--adapter", path))]
    assert failure(capsys, *line) == "gossamer: error: enough\n"
    assert loaded == [("a", "a", 1), ("b/c", "b/c", 0.5), ("d=e", "d=e", -1), ("odd=2", "odd=2", 1)]


def test_adapters_that_cannot_be_meant(capsys):
    for text in ("x=", "=1", "x=much", "x=nan", ""):
        assert "argument --adapter: must " in usage_error(capsys, "generate", "ab", "--adapter", text)
    line = usage_error(capsys, "bench", "--synthetic", "smollm2-135m", "--adapter", "x")
    assert "argument --adapter: not allowed with argument --synthetic" in line


def test_a_system_message_stands_before_the_prompt(served, capsys, monkeypatch):
    model = fake_model(template=True)
    decoder = model.decoder
    assert isinstance(decoder, FakeDecoder)
    served(model)
    words = model.tokenizer.words  # type: ignore[attr-defined]
    assert main(["generate", "a", "--system", "hij", "-n", "1"]) == 0
    fed = "".join(words[token] for token in decoder.steps[-1][1])
    assert fed == "hij<u>a<a>"
    assert chat(monkeypatch, "a", "/reset", "b", argv=["--system", "hij", "-n", "1"]) == 0
    first, second = ["".join(words[token] for token in tokens) for _, tokens in decoder.steps[-2:]]
    assert (first, second) == ("hij<u>a<a>", "hij<u>b<a>")
    capsys.readouterr()
    assert "--system: not allowed with argument --raw" in usage_error(capsys, "generate", "a", "--raw", "--system", "h")
    served(fake_model())
    assert "no chat template" in failure(capsys, "generate", "a", "--system", "h")


def test_generate_json_is_one_document(served, capsys):
    served(fake_model("aab.", template=False))
    assert main(["generate", "a", "--json", "--stats"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["text"] == "ab"
    assert document["prompt"] == "a"
    assert document["stats"]["finish"] == "eos"
    assert document["stats"]["new_tokens"] == 3
    assert "decode: 3 tokens" in err


def test_generate_tells_log_probabilities_and_several_texts(served, capsys):
    served(fake_model())
    assert main(["generate", "ab", "-n", "2", "--json", "--logprobs", "1", "--completions", "2"]) == 0
    document = json.loads(capsys.readouterr().out)
    one, two = document["completions"]
    assert (one["text"], one["finish"], two["text"]) == ("cd", "length", "cd")
    assert [entry["text"] for entry in one["logprobs"]] == ["c", "d"]
    assert one["logprobs"][0]["logprob"] == one["logprobs"][0]["top"][0]["logprob"] < 0
    assert main(["generate", "ab", "-n", "2", "--completions", "2"]) == 0
    assert capsys.readouterr().out == "[1]\ncd\n[2]\ncd\n"
    assert "--logprobs: needs --json" in usage_error(capsys, "generate", "a", "--logprobs", "2")


def test_generate_reads_the_prompt_from_standard_input(served, capsys, monkeypatch):
    served(fake_model())
    monkeypatch.setattr(sys, "stdin", io.StringIO("ab\n"))
    assert main(["generate", "-n", "2"]) == 0
    assert capsys.readouterr().out == "cd\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\xff"), encoding="utf-8"))
    assert "standard input is not utf-8" in usage_error(capsys, "generate")
    for nothing in ("", "\n"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(nothing))
        assert "PROMPT is empty" in usage_error(capsys, "generate")
    assert "PROMPT is empty" in usage_error(capsys, "generate", "")
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    assert "PROMPT is missing" in usage_error(capsys, "generate")


def test_a_prompt_longer_than_the_context_names_both_numbers(served, capsys):
    served(fake_model(context=4))
    err = failure(capsys, "generate", "abcde")
    assert "5 tokens" in err
    assert "holds 4" in err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (GossamerError("model.safetensors: tensor x is\n bad"), "model.safetensors: tensor x is bad"),
        (FileNotFoundError(2, "No such file or directory", "gone.bin"), "gone.bin: No such file or directory"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("cols must be a multiple of 4, got 6"), "cols must be a multiple of 4, got 6"),
        (MemoryError(), "out of memory"),
        (KeyError("x"), "this is a bug in gossamer: KeyError: 'x' (GOSSAMER_DEBUG=1 shows where)"),
        (RuntimeError("odd"), "this is a bug in gossamer: RuntimeError: odd (GOSSAMER_DEBUG=1 shows where)"),
    ],
)
def test_a_failure_is_one_line_and_exit_code_1(error: Exception, line: str, capsys, monkeypatch):
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.delenv("GOSSAMER_DEBUG", raising=False)
    monkeypatch.setattr("gossamer.loading.load", fail)
    assert failure(capsys, "generate", "a") == f"gossamer: error: {line}\n"
    monkeypatch.setenv("GOSSAMER_DEBUG", "1")
    with pytest.raises(type(error)):
        main(["generate", "a"])


def test_an_error_in_the_middle_keeps_what_was_printed(served, capsys):
    model = fake_model()
    assert isinstance(model.decoder, FakeDecoder)
    model.decoder.fail_at = (3, ValueError("the step failed"))
    served(model)
    assert main(["generate", "a"]) == 1
    assert capsys.readouterr() == ("bcd\n", "gossamer: error: the step failed\n")


def test_ctrl_c_ends_with_130_and_keeps_what_was_printed(served, capsys):
    model = fake_model()
    assert isinstance(model.decoder, FakeDecoder)
    model.decoder.fail_at = (2, KeyboardInterrupt())
    served(model)
    assert main(["generate", "a"]) == 130
    assert capsys.readouterr() == ("bc\n", "")
    model.decoder.fail_at = (len(model.decoder.steps) + 2, KeyboardInterrupt())
    assert main(["generate", "a", "--json"]) == 130
    assert capsys.readouterr() == ("", "")


def chat(monkeypatch: pytest.MonkeyPatch, *lines: str, argv: Sequence[str] = ()) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    return main(["chat", *argv])


def test_chat_draws_where_the_model_has_no_defaults_and_tells_so(served, capsys, monkeypatch):
    model = fake_model(template=True)
    served(model)
    assert chat(monkeypatch, "a", argv=["--stats", "-n", "2"]) == 0
    assert "sampling: temperature 0.7, top-p 0.95, min-p 0.05, repeat penalty 1.05, seed 0" in capsys.readouterr().err
    model.tokenizer.generation = {"do_sample": True, "top_k": 20}
    assert chat(monkeypatch, "a", "/stats", argv=["-n", "2", "--seed", "4"]) == 0
    assert "sampling: temperature 1, top-k 20, seed 4" in capsys.readouterr().err
    assert chat(monkeypatch, "a", "/stats", argv=["-n", "2", "--temperature", "0"]) == 0
    assert "sampling: the likeliest token" in capsys.readouterr().err


def test_chat_over_a_pipe_remembers_resets_and_leaves(served, capsys, monkeypatch):
    model = fake_model(template=True)
    decoder = model.decoder
    assert isinstance(decoder, FakeDecoder)
    decoder.script = [0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0]  # position 3: "a", then the end; position 7: "b"
    served(model)
    assert chat(monkeypatch, "/stats", "i", "", "j", "/stats", "/reset", "i", "/dance now", "/help", "/quit", "h") == 0
    out, err = capsys.readouterr()
    assert out == "a\nb\na\n"
    assert [
        word for word in ("no answer yet", "(4 reused)", "forgotten", "/dance;", "/reset ") if word not in err
    ] == []
    assert "dance now" not in err


def test_chat_leaves_at_the_end_of_the_input(served, capsys, monkeypatch):
    served(fake_model("...a.", template=True))
    assert chat(monkeypatch, "i") == 0
    assert capsys.readouterr().out == "a\n"


def test_chat_over_a_pipe_stops_at_an_error(served, capsys, monkeypatch):
    served(fake_model(template=True, context=3))
    assert chat(monkeypatch, "abc", "i") == 1
    assert "context holds 3" in capsys.readouterr().err


def test_chat_over_a_pipe_takes_utf8_alone(served, capsys, monkeypatch):
    served(fake_model(template=True))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    assert "standard input is not utf-8 text" in failure(capsys, "chat")


def test_texts_have_names(capsys):
    for command in (("eval", "m", "--text", ""), ("prune", "m", "out", "--calibration", "")):
        with pytest.raises(SystemExit):
            main(list(command))
        assert "must not be empty" in capsys.readouterr().err


def test_chat_needs_a_template(served, capsys):
    served(fake_model())
    assert "no chat template" in failure(capsys, "chat", "-m", "plain")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_chat_on_a_terminal_outlives_ctrl_c_and_errors(served, capsys, monkeypatch):
    model = fake_model(template=True, context=20)
    decoder = model.decoder
    assert isinstance(decoder, FakeDecoder)
    decoder.script = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    decoder.fail_at = (2, KeyboardInterrupt())
    served(model)
    lines: Iterator[Any] = iter(["i", KeyboardInterrupt(), "abcdefghijabcdefghij", "/quit"])

    def read(_prompt: str) -> str:
        line = next(lines)
        if isinstance(line, BaseException):
            raise line
        return str(line)

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert main(["chat"]) == 0
    out, err = capsys.readouterr()
    assert out == "de\n\n"  # an answer cut short, and Ctrl-C at the prompt
    assert "context holds 20" in err
    assert next(lines, None) is None


def test_eval_refuses_a_text_that_is_not_there_before_loading(served, capsys, tmp_path):
    calls = served(fake_model())
    assert "gone.txt" in failure(capsys, "eval", "m", "--text", str(tmp_path / "gone.txt"))
    (tmp_path / "bad.txt").write_bytes(b"a\xff")
    assert "bad.txt" in failure(capsys, "eval", "m", "--text", str(tmp_path / "bad.txt"))
    (task := tmp_path / "task.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    assert "is what is read" in failure(capsys, "eval", "m", "--task", str(task), "--results", str(task))
    assert calls == []


def test_eval_prints_the_perplexity(served, capsys, tmp_path):
    model = fake_model(context=64)
    served(model)
    (tmp_path / "text.txt").write_text("abcdefg" * 10, encoding="utf-8")
    line = ["eval", "m", "--text", str(tmp_path / "text.txt"), "--context", "8"]
    assert main([*line, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["windows"] == 9
    assert document["tokens"] == 70 - 9
    assert main([*line, "--windows", "2"]) == 0
    assert "over 14 tokens in 2 windows of 8" in capsys.readouterr().out


def test_tables_align():
    text = table(("name", "n"), [("a", "1"), ("long", "1000")])
    assert text.splitlines() == ["name     n", "----  ----", "a        1", "long  1000"]


def test_progress_on_a_file_tells_a_line_only_now_and_then(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("gossamer.cli.progress.time.monotonic", lambda: now[0])
    with progress() as report:
        for done in range(100):
            report(done, 100, "packing")
            now[0] += 0.25
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [f"packing: {done} of 100 ({done}%)" for done in (20, 40, 60, 80)]


def test_progress_of_long_work_is_no_flood(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("gossamer.cli.progress.time.monotonic", lambda: now[0])
    with progress() as report:
        for done in range(3600):
            report(1024 * done, 1024 * 3600, "tokens")
            now[0] += 1
    lines = capsys.readouterr().err.splitlines()
    assert 20 < len(lines) < 100
    assert lines[0] == "tokens: 5,120 of 3,686,400 (0%)"


def test_progress_on_a_terminal_draws_on_stderr_and_clears_up(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress() as report:
        report(1, 2, "packing [bold]")
        report(2, 2, "packing [bold]")
    assert capsys.readouterr().out == ""


def test_plotting_needs_its_library(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install 'gossamer[plot]'" in failure(capsys, "inspect", "m", "--plot", "p.png")
