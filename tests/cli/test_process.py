"""The command line in processes of its own: interrupts, readers that go away, full disks, poor terminals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from checkout import ROOT

SERVER = """
import sys, time
sys.path[:0] = {paths!r}
from fakes import fake_model
import gossamer.loading
from gossamer import cli
model = {model}
step = model.decoder.step
def slow(batch, all_logits=False):
    with open({steps!r}, "a") as file:
        file.write(".")
    time.sleep({delay})
    return step(batch, all_logits)
model.decoder.step = slow
gossamer.loading.load = lambda name, **options: model
raise SystemExit(cli.main())
"""


def process(
    *argv: str, delay: float = 0.0, model: str = "fake_model('ab')", steps: str | Path = os.devnull, **options: Any
) -> subprocess.Popen[bytes]:
    """Starts the command in a process of its own, over the fake model, which writes a dot a step into a file."""
    import gossamer

    paths = [str(ROOT / "tests" / "support"), *(str(Path(path).parent) for path in gossamer.__path__)]
    code = SERVER.format(paths=paths, delay=delay, model=model, steps=str(steps))
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([sys.executable, "-c", code, *argv], **options)


def test_sigint_in_the_middle_of_an_answer():
    with process("generate", "a", "-n", "900", delay=0.05) as running:
        assert running.stdout is not None
        first = os.read(running.stdout.fileno(), 1)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert re.fullmatch(rb"[ab]{1,899}\n", first + out)
    assert err == b""


def test_sigint_in_the_middle_of_a_document(tmp_path: Path):
    steps = tmp_path / "steps"
    with process("generate", "a", "-n", "900", "--json", delay=0.05, steps=steps) as running:
        while running.poll() is None and (not steps.exists() or steps.stat().st_size < 3):
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    document = json.loads(out)
    assert document["finish"] == "closed"
    assert 1 <= len(document["text"]) < 900
    assert err == b""


def test_a_reader_that_goes_away_ends_it_quietly():
    with process("generate", "a", "-n", "900", delay=0.01) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        os.read(running.stdout.fileno(), 1)
        running.stdout.close()
        err = running.stderr.read()
        running.wait(timeout=60)
    assert running.returncode == 141
    assert err == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
@pytest.mark.parametrize("argv", [("generate", "a"), ("generate", "a", "--json")])
def test_a_full_disk_behind_stdout_is_an_error(argv: tuple[str, ...]):
    with Path("/dev/full").open("wb") as full, process(*argv, stdout=full) as running:
        _, err = running.communicate(timeout=60)
    assert running.returncode == 1
    assert err == b"gossamer: error: No space left on device\n"


def test_a_terminal_without_the_letters_prints_question_marks():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    with process("generate", "a", "-n", "1", model="fake_model(words=['', 'a', 'é'])", env=environment) as running:
        out, err = running.communicate(timeout=60)
    assert (running.returncode, out, err) == (0, b"?\n", b"")


def test_closed_streams_are_as_if_nobody_reads_and_nothing_is_there():
    main = "from gossamer.cli import main; raise SystemExit(main())"
    close = "import os; [os.close(n) for n in {}]; os.execv({!r}, [{!r}, '-c', {!r}, *{!r}])"

    def run(streams: tuple[int, ...], *argv: str) -> subprocess.CompletedProcess[bytes]:
        code = close.format(streams, sys.executable, sys.executable, main, argv)
        return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)

    assert run((1,), "convert", "a", "b").returncode == 1
    assert b"PROMPT is empty" in run((0,), "generate").stderr
    done = run((2,), "convert", "a", "b")
    assert (done.returncode, done.stdout) == (1, b"")


def test_what_draws_is_imported_only_where_it_draws():
    code = "import sys; import gossamer.cli; sys.exit('matplotlib' in sys.modules or 'rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_package_runs_as_the_command_does():
    done = subprocess.run([sys.executable, "-m", "gossamer", "fry"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("gossamer: error: ")


@pytest.mark.parametrize(
    ("module", "drops"),
    [
        ("signal", False),  # before anything can be done about it
        *((name, drops) for name in ("gossamer.cli", "gossamer.errors", "numpy") for drops in (False, True)),
        ("gossamer.cli.translate", True),
    ],
)
def test_sigint_while_modules_are_imported_is_quiet(module: str, drops: bool):
    # As callbacks do, one that drops the exception: what comes then would run as if nobody had pressed it.
    code = f"""
import os, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            try:
                os.kill(os.getpid(), 2)
            except KeyboardInterrupt:
                if not {drops}:
                    raise
sys.meta_path.insert(0, Interrupt())
sys.modules.pop("signal", None)
from gossamer.__main__ import main
sys.exit(main())
"""
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_the_package_itself_imports_nothing():
    import gossamer

    code = f"""
import sys
sys.path.insert(0, {str(Path(gossamer.__file__).parents[1])!r})
before = set(sys.modules)
import gossamer
print(sorted(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['__future__', 'gossamer']\n"


def test_names_of_the_package_are_there_before_they_are_imported():
    code = "import gossamer; print(set(gossamer.__all__) <= set(dir(gossamer)), 'numpy' in __import__('sys').modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"
    import gossamer

    assert all(hasattr(gossamer, name) for name in gossamer.__all__)
    assert not hasattr(gossamer, "no_such_name")


def test_the_installed_command_is_quiet_from_the_first_import_on():
    (entry,) = metadata.entry_points(group="console_scripts", name="gossamer")
    assert entry.value == "gossamer.__main__:main"


@pytest.mark.parametrize(("given", "found"), [(None, "16"), ("20", "20")])
def test_threads_of_numpy_leave_the_cores_alone_soon(given: str | None, found: str):
    code = "import os, gossamer.cli; gossamer.cli.main = lambda: print(os.environ['OPENBLAS_THREAD_TIMEOUT']) or 0"
    environment = {key: value for key, value in os.environ.items() if key != "OPENBLAS_THREAD_TIMEOUT"}
    if given:
        environment["OPENBLAS_THREAD_TIMEOUT"] = given
    code += "\nfrom gossamer.__main__ import main\nraise SystemExit(main())"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == found
