"""Changes valid inputs of every reader at random, and has each either run or be refused in one line.

    python bench/fuzz.py --count 10000 --isa scalar --minutes 9     # again and again, until it says that it is done

A build with sanitizers (CONTRIBUTING.md) sees more: the module tells it, and their runtimes are loaded first.
Every input is used in a process that many share. One that dies, takes more than 10 s of the processor, 40 s of the
clock or 500 MB more than before is noted with its number, and the rest goes on in another process. The same seed and
number always give the same input: `--only NUMBER` makes it again. What was found stands in bench/results/fuzz.json, by
ISA.
"""

from __future__ import annotations

import argparse
import collections
import importlib.util
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import IO, Any

from common import RESULTS, ROOT, write_result
from fuzz_mutations import MUTATIONS, mutate_bytes

SECONDS = 10.0
BYTES = 500 << 20
SHARES = {
    "gguf": 22, "safetensors": 18, "packed": 20, "families": 20, "compressed": 8, "torch": 11, "transformers": 1,
}  # fmt: skip
_BATCH = 400  # inputs that a process uses at most
_PATIENCE = 600.0  # seconds until a process must have begun
_LONGEST = 2500  # letters of a line


class Inputs:
    """The valid inputs, and the changed one of every number."""

    def __init__(self, folder: Path, seed: int) -> None:
        import fuzz_inputs

        self.seed = seed
        self._kinds: dict[str, list[tuple[str, dict[str, bytes]]]] = collections.defaultdict(list)
        for name, files in fuzz_inputs.read(folder):
            self._kinds[name.partition("/")[0]].append((name, files))

    def kinds(self) -> list[str]:
        """Returns the kinds that there are."""
        return [kind for kind in SHARES if kind in self._kinds]

    def get(self, number: int) -> tuple[str, dict[str, bytes], random.Random]:
        """Returns KIND/NAME, files, and what draws further."""
        rng = random.Random(f"{self.seed} {number}")
        kinds = self.kinds()
        (kind,) = rng.choices(kinds, [SHARES[kind] for kind in kinds])
        name, files = rng.choice(self._kinds[kind])
        return name, changed(kind, files, rng), rng


def changed(kind: str, files: dict[str, bytes], rng: random.Random) -> dict[str, bytes]:
    """Returns the files of an input with one of them changed, sometimes two."""
    files = dict(files)
    names = [name for name in files if kind not in ("torch", "transformers") or "config" in name or "model." in name]
    for _ in range(rng.choice((1, 1, 1, 2))):
        name = rng.choice(names)
        change = MUTATIONS.get(Path(name).suffix, mutate_bytes)
        if rng.random() < 0.01:
            files[name] = rng.choice((b"", b"version https://git-lfs.github.com/spec/v1\n", files[rng.choice(names)]))
        try:
            files[name] = change(files[name], rng)
        except (ValueError, KeyError, IndexError, TypeError, RecursionError, AttributeError):  # changed before
            files[name] = mutate_bytes(files[name], rng)
    if "gossamer.json" in files and rng.random() < 0.5:
        files["gossamer.json"] = _with_checksums(files)
    return files


def _with_checksums(files: dict[str, bytes]) -> bytes:
    """The file as somebody would leave it who knows about its checksums."""
    import hashlib

    from gossamer.packing.folder import document_digest

    try:
        document = json.loads(files["gossamer.json"])
        document["sha256"] = {
            name: hashlib.sha256(data).hexdigest() for name, data in files.items() if name != "gossamer.json"
        }
        document["document_sha256"] = document_digest(document)
        return json.dumps(document).encode("utf-8", "surrogatepass")
    except (ValueError, TypeError, RecursionError, AttributeError):
        return files["gossamer.json"]


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


# --- the process that uses inputs -------------------------------------------------------------------------------------


def work(inputs: Inputs, numbers: list[int], out: IO[str]) -> None:
    """Uses inputs, and tells before and after each."""
    import logging

    from fuzz_use import prepare, use

    prepare(inputs.kinds())
    logging.getLogger("gossamer").addHandler(logging.NullHandler())
    logging.getLogger("gossamer").propagate = False
    with tempfile.TemporaryDirectory(dir=os.environ.get("FUZZ_PLACE")) as place:
        for number in numbers:
            name, files, rng = inputs.get(number)
            kind, folder = name.partition("/")[0], Path(place) / "input"
            write(folder, files)
            before = _peak(reset=True)
            print(json.dumps({"number": number, "name": name}), file=out, flush=True)
            start = time.process_time()
            outcome, line = "ran", ""
            try:
                use(kind, folder, rng)
            except Exception as error:
                outcome, line = judge(error)
            answer = {"outcome": outcome, "line": line[:_LONGEST], "seconds": time.process_time() - start}
            print(json.dumps({**answer, "bytes": _peak() - before}), file=out, flush=True)
            shutil.rmtree(folder)


def judge(error: Exception) -> tuple[str, str]:
    """Says whether an exception is how an input should be refused, and what it says."""
    from gossamer import GossamerError

    package = str(Path(sys.modules["gossamer"].__file__ or "").parent)
    text = str(error)
    if isinstance(error, GossamerError):
        fair = text.isprintable() and 0 < len(text) < _LONGEST
        return ("refused", text) if fair else ("bad line", repr(text))
    frames = traceback.extract_tb(error.__traceback__)
    where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[::-1][:12])
    ours = any(frame.filename.startswith(package) for frame in frames)
    return "exception" if ours else "elsewhere", f"{type(error).__name__}: {text:.500} ({where})"


def _peak(reset: bool = False) -> int:
    """The most bytes that lay in memory since the last reset."""
    if reset:
        with Path("/proc/self/clear_refs").open("w") as file:
            file.write("5")
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


# --- the process that watches -----------------------------------------------------------------------------------------


class Watcher:
    """Runs processes over the inputs, and keeps what was found."""

    def __init__(self, args: argparse.Namespace, command: list[str], environment: dict[str, str]) -> None:
        self._record = args.place / f"{args.isa}-{args.seed}.json"
        old = json.loads(self._record.read_text()) if self._record.is_file() else {}
        self.counts: dict[str, dict[str, int]] = old.get("counts", {})
        self.worst = old.get("worst", {"seconds": 0.0, "bytes": 0})
        self.found: list[dict[str, Any]] = old.get("found", [])
        self.next = old.get("next", 0)
        self._command, self._environment, self._keep = command, environment, args.keep

    def run(self, last: int, end: float) -> None:
        """Goes on up to an input's number, or until it is late."""
        while self.next < last and time.monotonic() < end:
            self._batch(min(last, self.next + _BATCH), end)
            self.save()
            print(f"{self.next} of {last}: {json.dumps(self.totals())}", flush=True)

    def save(self) -> None:
        """Keeps what was done, for the next run to go on behind it."""
        done = {"next": self.next, "counts": self.counts, "worst": self.worst, "found": self.found}
        part = self._record.with_suffix(".part")
        part.write_text(json.dumps(done))
        part.replace(self._record)

    def totals(self) -> dict[str, int]:
        """Returns how many inputs had each outcome."""
        totals: collections.Counter[str] = collections.Counter()
        for counts in self.counts.values():
            totals.update(counts)
        return dict(totals)

    def _batch(self, last: int, end: float) -> None:
        with tempfile.TemporaryFile() as errors:
            command = [*self._command, "--work", f"{self.next}:{last}"]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=self._environment)
            assert process.stdout is not None
            told, rest, limit = None, b"", _PATIENCE
            while True:
                ready, _, _ = select.select([process.stdout], [], [], limit)
                chunk = os.read(process.stdout.fileno(), 1 << 16) if ready else b""
                if not chunk:
                    break
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    message = json.loads(line)
                    if "number" in message:
                        told, limit = message, 4 * SECONDS
                        continue
                    assert told is not None
                    self._note(told, message)
                    told = None
                if told is None and time.monotonic() > end:
                    break
            if process.poll() is None:
                process.kill()
            code = process.wait()
            if told is not None:
                errors.seek(0)
                text = errors.read().decode(errors="replace")
                what = f"ended with {signal.Signals(-code).name if code < 0 else code}: {text[-6000:]}"
                dead = {"outcome": "crash" if ready else "slow", "line": what, "seconds": 0.0, "bytes": 0}
                self._note(told, dead)
            elif not ready or (code and not chunk):
                errors.seek(0)
                raise SystemExit(f"a process ended with {code}: {errors.read().decode(errors='replace')[-3000:]}")

    def _note(self, told: dict[str, Any], message: dict[str, Any]) -> None:
        kind = told["name"].partition("/")[0]
        outcome = message["outcome"]
        if outcome in FINE and message["seconds"] > SECONDS:
            outcome = "slow"
        if outcome in FINE and message["bytes"] > BYTES:
            outcome = "memory"
        counts = self.counts.setdefault(kind, {})
        counts[outcome] = counts.get(outcome, 0) + 1
        for key in self.worst:
            self.worst[key] = max(self.worst[key], message[key])
        self.next = told["number"] + 1
        if outcome not in FINE:
            self.found.append({**told, **message, "outcome": outcome})
            print(f"{outcome}: {told['number']} {told['name']}: {message['line'][-1500:]}", flush=True)
            if self._keep:
                self._keep.mkdir(parents=True, exist_ok=True)
                with (self._keep / "found.jsonl").open("a") as file:
                    file.write(json.dumps(self.found[-1]) + "\n")


FINE = ("ran", "refused", "elsewhere")
"""Outcomes that are as they should be; the last is an error of a package that the user called, not of this one."""


def sanitizers(module: bytes) -> dict[str, str]:
    """What the environment needs for a native module that was built with sanitizers; empty for any other."""
    names = [name for name in ("libasan", "libubsan") if name.encode() in module]
    if not names:
        return {}

    def find(name: str) -> str:
        return subprocess.check_output(["g++", f"-print-file-name={name}.so"], text=True).strip()

    return {
        "LD_PRELOAD": f"{find('libasan')} {find('libstdc++')}",
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1:allocator_may_return_null=1:quarantine_size_mb=16",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="inputs in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--isa", default="scalar", help="tier, as GOSSAMER_ISA names them")
    parser.add_argument("--kinds", nargs="*", help="of inputs (default all)")
    parser.add_argument("--minutes", type=float, default=1e9, help="of this run; the next one goes on behind it")
    parser.add_argument("--place", type=Path, default=Path("build/fuzz"), help="folder for inputs and what was done")
    parser.add_argument("--keep", type=Path, help="folder for what was found")
    parser.add_argument("--only", type=int, help="writes this input to --place, and only uses it")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes
    seeds = args.place / "inputs"
    if args.work == "make":
        import fuzz_inputs

        part = args.place / f"inputs.{os.getpid()}"
        fuzz_inputs.make(part, args.kinds or list(fuzz_inputs.KINDS))
        part.rename(seeds)
        return
    if args.work == "only":
        from fuzz_use import use

        name, files, rng = Inputs(seeds, args.seed).get(args.only)
        folder = args.place / str(args.only)
        write(folder, files)
        print(f"{name} in {folder}", flush=True)
        use(name.partition("/")[0], folder, rng)
        return
    if args.work:
        first, last = map(int, args.work.split(":"))
        work(Inputs(seeds, args.seed), list(range(first, last)), sys.stdout)
        return
    environment = {**os.environ, "GOSSAMER_ISA": args.isa, "GOSSAMER_MEASURE": "0", "OMP_NUM_THREADS": "1"}
    spec = importlib.util.find_spec("gossamer._core")
    assert spec is not None
    assert spec.origin is not None
    checked = sanitizers(Path(spec.origin).read_bytes())
    environment |= checked
    if checked and os.environ.get("LD_PRELOAD") != checked["LD_PRELOAD"]:  # who writes the result asks the module, too
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    command = [sys.executable, __file__, "--seed", str(args.seed), "--place", str(args.place)]
    if not seeds.is_dir():
        kinds = ["--kinds", *args.kinds] if args.kinds else []
        subprocess.run([*command, *kinds, "--work", "make"], env=environment, check=True)
    if args.only is not None:
        subprocess.run([*command, "--work", "only", "--only", str(args.only)], env=environment, check=False)
        return
    watcher = Watcher(args, command, environment)
    try:
        watcher.run(args.count, end)
    finally:
        watcher.save()
    if watcher.next < args.count:
        return
    wrong = {name: count for name, count in watcher.totals().items() if name not in FINE}
    old_results = RESULTS / "fuzz.json"
    tiers = json.loads(old_results.read_text())["tiers"] if old_results.is_file() else {}
    tiers[args.isa] = {
        "seed": args.seed,
        "inputs": args.count,
        "sanitizers": bool(checked),
        "wrong": sum(wrong.values()),
        "outcomes": {kind: dict(sorted(counts.items())) for kind, counts in sorted(watcher.counts.items())},
        "most": watcher.worst,
    }
    path = write_result("fuzz", {"tiers": tiers})
    print(f"done: {path.relative_to(ROOT)}: {wrong or 'nothing wrong'}")


if __name__ == "__main__":
    main()
