"""What is typed: wrong usage and what was probably meant, help, completion, the values of options."""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess

import pytest

from commands import usage_error
from gossamer.cli import COMMANDS, main
from gossamer.cli.options import integer, number


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("fry", ["'fry'", "generate"]),
        ("genrate", ["'genrate'", "; did you mean generate? "]),
        ("--verison", ["gossamer: error", "--verison; did you mean --version? "]),
        ("generate a --zzyx", ["gossamer generate: error", "unrecognized arguments: --zzyx (see"]),
        ("generate a --temp 1", ["--temp 1; did you mean --temperature? "]),
        ("generate a --top 1", ["; did you mean --top-k or --top-p? "]),
        ("convert a b --wieghts=int8", ["--wieghts=int8; did you mean --weights? "]),
        ("convert a b --weights int6", ["--weights", "'int6'", "; did you mean int8? "]),
        ("eval m --txt f", ["--text --task --pairs is required; there is no --txt; did you mean --text? "]),
        ("generate a --draft luck", ["--draft", "luck", "ngram"]),
        ("generate a --device tpu", ["--device", "'tpu'", "cuda"]),
        ("generate a --kv int4", ["--kv", "int4", "int8"]),
        ("generate a --activations int8", ["--activations"]),
        ("generate a -n 0", ["-n/--max-new-tokens", "at least 1", "got 0"]),
        ("generate a -n x", ["-n/--max-new-tokens", "whole number", "'x'"]),
        ("generate a --temperature -0.5", ["--temperature", "at least 0", "-0.5"]),
        ("generate a --temperature nan", ["--temperature", "nan"]),
        ("generate a --top-p 0", ["--top-p", "above 0 and at most 1", "got 0"]),
        ("generate a --top-p 1.5", ["--top-p", "1.5"]),
        ("generate a --min-p 2", ["--min-p", "at most 1"]),
        ("generate a --top-k -1", ["--top-k", "at least 0"]),
        ("generate a --repeat-penalty 0", ["--repeat-penalty", "above 0"]),
        ("generate a --typical-p 0", ["--typical-p", "above 0 and at most 1"]),
        ("generate a --frequency-penalty x", ["--frequency-penalty", "'x'"]),
        ("generate a --presence-penalty inf", ["--presence-penalty", "finite", "inf"]),
        ("generate a --logit-bias 3", ["--logit-bias", "TOKEN=X", "'3'"]),
        ("generate a --logit-bias x=1", ["--logit-bias", "whole number", "'x'"]),
        ("generate a --completions 0", ["--completions", "at least 1"]),
        ("generate a --seed -1", ["--seed"]),
        ("generate a --threads 0", ["--threads", "at least 1"]),
        ("generate a --stop=", ["--stop", "empty"]),
        ("generate a -m", ["-m/--model"]),
        ("generate a b", ["unrecognized arguments: b"]),
        ("convert a", ["DST"]),
        ("convert a b --group 48", ["--group", "48"]),
        ("convert a b --weights int2", ["--weights", "int2"]),
        ("convert a b --format coo", ["--format", "coo"]),
        ("prune a b --sparsity 1", ["--sparsity", "below 1"]),
        ("prune a b --sparsity -0.1", ["--sparsity"]),
        ("prune a b --pattern 5:4", ["--pattern", "N:M", "'5:4'"]),
        ("prune a b --pattern 2x4", ["--pattern", "'2x4'"]),
        ("prune a b --pattern 2:4 --sparsity 0.5", ["--sparsity", "not allowed with", "--pattern"]),
        ("prune a b --method luck", ["--method", "luck"]),
        ("prune a b --allocation luck", ["--allocation", "luck"]),
        ("bench m -p 0 -n 0", ["-p and -n"]),
        ("bench m --threads 1,0", ["--threads", "at least 1"]),
        ("bench m -r 0", ["-r/--repeats"]),
        ("bench", ["MODEL"]),
        ("eval m", ["--text"]),
        ("eval m --text f --context 1", ["--context", "at least 2"]),
        ("inspect", ["MODEL"]),
        ("translate a", ["-m/--model"]),
    ],
)
def test_wrong_usage_is_one_line_that_names_the_option(line: str, words: list[str], capsys, monkeypatch):
    monkeypatch.setattr("gossamer.cli.options.open_model", lambda *_: pytest.fail("nothing may be loaded"))
    err = usage_error(capsys, *line.split())
    assert [word for word in words if word not in err] == []


def test_nobody_is_waited_for_at_a_terminal(capsys, monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    assert "TEXT is missing" in usage_error(capsys, "embed", "-m", "m")


def test_help_documents_every_option_of_every_command(capsys):
    for command in ("", *COMMANDS):
        with pytest.raises(SystemExit) as caught:
            main([*command.split(), "--help"])
        assert caught.value.code == 0
        assert "usage: gossamer" in capsys.readouterr().out
    for module in COMMANDS.values():
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        assert [action.dest for action in parser._actions if not action.help] == []


def test_a_bare_line_prints_the_help(capsys):
    assert main([]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: gossamer ")
    assert [name for name in COMMANDS if f"    {name} " not in out] == []
    assert err == ""


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_is_a_script_of_the_shell(shell: str, capsys, tmp_path):
    with pytest.raises(SystemExit) as caught:
        main(["--print-completion", shell])
    assert caught.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    words = [*COMMANDS, "--repeat-penalty", "--allocation", "sparsegpt"]
    assert [word for word in words if word not in out] == []
    if not shutil.which(shell):
        return
    (tmp_path / "script").write_text(out)
    assert subprocess.run([shell, "-n", tmp_path / "script"], check=False).returncode == 0
    if shell == "bash":
        ask = "source ./script; COMP_WORDS=(gossamer gen); COMP_CWORD=1; _shtab_gossamer; echo ${COMPREPLY[@]}"
        done = subprocess.run([shell, "-c", ask], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.stdout == "generate\n"


def test_version(capsys):
    import gossamer

    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"gossamer {gossamer.__version__}\n"


def test_argument_types():
    assert integer(1)("3") == 3
    assert number(0, 1)("0.5") == 0.5
    for parse, text in [(integer(0), "1.5"), (number(0), "inf"), (number(0, 1), "-1"), (number(0, above=True), "0")]:
        with pytest.raises(argparse.ArgumentTypeError, match="must be"):
            parse(text)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("convert a b --weights bf16 --group 32", "--group: is for scales of int8 and int4 values, not for bf16"),
        ("prune a b --group 32", "--group: goes with --weights int4"),
        ("prune a b --method magnitude --calibration t", "--calibration: method magnitude reads no text"),
        ("prune a b --method magnitude --windows 3", "--windows: method magnitude reads no text"),
        ("prune a b --method magnitude --seed 0", "--seed: method magnitude reads no text"),
        ("serve --port 99999", "--port: must be at most 65535, got 99999"),
        ("finetune a b --data t --teacher c --group 32", "--group: goes with --weights int8 or int4"),
    ],
)
def test_options_without_effect(line: str, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert what in usage_error(capsys, *line.split())
