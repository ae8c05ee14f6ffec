"""Changes keys of config.json of every family, and holds the logits against those of transformers.

    python bench/config_sweep.py --share 0.1 --minutes 9     # again and again: a run goes on behind the last one

Every input is a small config with one key, or a few that belong together, set to another value. transformers reads it
and makes a model of seeded weights; the same weights and the same config.json are read here. What comes of it:

    equal          both give the same logits
    refused        one line says what is not supported, where transformers gives other logits than without the change
    unkind         the same, where the change changes nothing there
    told           other logits, and a note names the key
    both refuse    neither reads it
    ours alone     transformers raises an error, and we do not
    no numbers     transformers gives logits that are not finite
    WRONG          other logits without a word
    CRASH          an error that is no line for a user

The same seed always gives the same inputs. `--only FAMILY:NUMBER` shows one. How many there were of each stands in
bench/results/config_sweep.json, by family.
"""

from __future__ import annotations

import argparse
import collections
import json
import logging
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from pathlib import Path
from typing import Any

import config_sweep_inputs as made
import numpy as np
import torch
import transformers
from common import ROOT, write_result

import gossamer
from gossamer import GossamerError, arch
from gossamer.checkpoints import open_checkpoint

sys.path.insert(0, str(ROOT / "tests" / "support"))

from tiny import save_tokenizer

WITHIN = 3e-5
"""Share of the largest logit by which logits may differ; they are below a tenth of it."""
_LENGTH, _SOURCE, _FRAMES = 40, 33, 60
_PAIRS = ("bart", "m2m_100", "marian", "mt5", "t5", "whisper")
_ENCODERS = ("bert", "distilbert", "modernbert", "mpnet", "roberta", "xlm-roberta")
_MEMORY = 12 << 30
_FAULTS = ("WRONG", "CRASH")


class Theirs:
    """A model of transformers with seeded weights, or the error that it gave."""

    def __init__(self, folder: Path, family: str) -> None:
        self.error, self.logits = "", None
        try:
            settings = transformers.AutoConfig.from_pretrained(folder)
            auto: Any = transformers.AutoModelForCausalLM
            if family in _ENCODERS:
                auto = transformers.AutoModel
            elif family == "whisper":
                auto = transformers.AutoModelForSpeechSeq2Seq
            elif family in _PAIRS:
                auto = transformers.AutoModelForSeq2SeqLM
            self.model = auto.from_config(settings, attn_implementation="eager", dtype=torch.float32).eval()
            _seed(self.model)
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"

    def shapes(self) -> str:
        """Returns what its weights are, as a text."""
        every = self.model.state_dict().items()
        return str([(name, tuple(value.shape), float(value.float().sum())) for name, value in every])

    def run(self, family: str, length: int, heard: int) -> Any:
        """Returns its logits, or an encoder's states; None, with `error` set, where it raises."""
        given: dict[str, Any] = {"input_ids": torch.from_numpy(tokens(length))[None]}
        if family == "whisper":
            sound = torch.from_numpy(frames(self.model.config.num_mel_bins).T[None])
            given = {"input_features": sound, "decoder_input_ids": given["input_ids"]}
        elif family in _PAIRS:
            given = {"input_ids": torch.from_numpy(tokens(heard, 1))[None], "decoder_input_ids": given["input_ids"]}
        if family not in _ENCODERS:
            given["use_cache"] = False
        try:
            with torch.no_grad():
                found = self.model(**given, return_dict=True)
                return (found.last_hidden_state if family in _ENCODERS else found.logits)[0].numpy()
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
            return None


def tokens(length: int, seed: int = 0) -> Any:
    """Returns token ids that no family takes for padding."""
    return np.random.default_rng(seed).integers(5, 300, _LENGTH)[:length]


def frames(bins: int) -> Any:
    """Returns frames of sound."""
    return np.random.default_rng(0).standard_normal((_FRAMES, bins)).astype(np.float32)


def _seed(model: Any) -> None:
    """Sets every parameter by its name, whatever a config says of how they begin."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:  # sines
                continue
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
            middle = float(parameter.dim() == 1 and parameter.mean() > 0.5)
            size = 0.1 if parameter.dim() == 1 else 0.8 / parameter.shape[-1] ** 0.5
            if any(word in name for word in ("embed", "wte", "shared")) and parameter.dim() > 1:
                size = 0.03  # so that what norms add is seen
            parameter.copy_(middle + size * noise)


class Sweep:
    """The inputs of a family, one after the other."""

    def __init__(self, family: str, folder: Path) -> None:
        self.family, self.folder = family, folder
        self._ours: dict[tuple[str, str], Any] = {}
        self._bases: dict[str, Any] = {}
        save_tokenizer(folder)

    def judge(self, base: str, config: made.Config, change: made.Config) -> dict[str, Any]:
        """Returns what comes of an input."""
        config = {"model_type": self.family, **made.changed(config, change)}
        text = json.dumps(config)
        (self.folder / "config.json").write_text(text)
        theirs, length, heard = Theirs(self.folder, self.family), _LENGTH, _SOURCE
        expected = None
        try:
            try:
                described, found = self._describe(json.loads(text))
                length = min(length, described.context)
                heard = min(heard, described.encoder.context) if described.encoder else heard
            finally:
                if not theirs.error:
                    expected = theirs.run(self.family, length, heard)
            if not change:
                self._bases[base] = expected
            notes = [f"left out: {', '.join(found)}"] if found else []
            if theirs.error:
                return self._named("ours alone" if not found else "both refuse", theirs.error)
            actual, more = self._run(text, str((described, self._sources)), theirs, length, heard)
        except GossamerError as error:
            line = str(error)
            if not line.isprintable():
                return self._named("CRASH", f"no line: {line!r}")
            if theirs.error:
                return self._named("both refuse", line)
            same = expected is not None and self._near(expected, self._bases.get(base))
            return self._named("unkind" if same else "refused", line)
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(frame.filename).name}:{frame.lineno}"
            return self._named("CRASH", f"{type(error).__name__}: {error} ({where}); theirs: {theirs.error or 'ran'}")
        if not np.isfinite(expected).all():
            return self._named("no numbers", "")
        if self._near(actual, expected):
            return {"outcome": "equal", "line": "", "distance": self._distance(actual, expected)}
        told = [note for note in (*notes, *more) if any(key in note for key in change)]
        return self._named("told" if told else "WRONG", "; ".join(told) or f"{self._distance(actual, expected):.2g}")

    def _describe(self, config: made.Config) -> tuple[Any, list[str]]:
        """The description, the tensors' places and what is not known, in the order of an opened checkpoint."""
        family = arch.family(config)
        found = family.unread(config)
        self._sources = family.sources(config)
        return family.describe(config), found

    def _run(self, text: str, described: str, theirs: Theirs, length: int, heard: int) -> tuple[Any, tuple[str, ...]]:
        """Our logits and notes; those of the same weights and description are computed once."""
        key = (theirs.shapes(), described)
        if key not in self._ours:
            theirs.model.save_pretrained(self.folder)
            (self.folder / "config.json").write_text(text)
            (self.folder / "generation_config.json").unlink(missing_ok=True)
            notes = open_checkpoint(self.folder).notes
            model = gossamer.load(self.folder, activations="f32", threads=1)
            self._ours[key] = (self._logits(model, length, heard, theirs.model.config), notes)
        return self._ours[key]

    def _logits(self, model: Any, length: int, heard: int, settings: Any) -> Any:
        ids, engine = tokens(length), model.decoder
        if self.family in _ENCODERS:
            return engine.encode([ids])
        if self.family == "whisper":
            return model.logits(ids, reads=frames(settings.num_mel_bins))
        return model.logits(ids, reads=tokens(heard, 1)) if self.family in _PAIRS else model.logits(ids)

    def _distance(self, actual: Any, expected: Any) -> float:
        if actual is None or expected is None or actual.shape != expected.shape:
            return float("inf")
        return float(np.abs(actual - expected).max() / (np.abs(expected).max() or 1))

    def _near(self, actual: Any, expected: Any) -> bool:
        return self._distance(actual, expected) < WITHIN

    @staticmethod
    def _named(outcome: str, line: str) -> dict[str, Any]:
        return {"outcome": outcome, "line": line[:400]}


def run(family: str, args: argparse.Namespace, end: float) -> bool:
    """Goes through a family's inputs from where the last run ended; says whether all are done."""
    path = args.place / f"{family}.jsonl"
    done = {json.loads(line)["number"] for line in path.read_text().splitlines()} if path.exists() else set()
    rng = random.Random(f"{args.seed} {family}")
    every = list(enumerate(made.inputs(family, args.seed, args.draws)))
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch, path.open("a") as out:
        sweep = Sweep(family, Path(scratch))
        for number, (base, config, change) in every:
            chosen = rng.random() < args.share
            if change and (not chosen or number in done):
                continue
            if time.monotonic() > end:
                return False
            found = sweep.judge(base, config, change)
            if number in done:
                continue
            line = {"number": number, "base": base, "change": change, **found}
            out.write(json.dumps(line) + "\n")
            if found["outcome"] in _FAULTS or not (change or found["outcome"] == "equal"):
                print(f"{found['outcome']}: {family}:{number} {base} {json.dumps(change)}: {found['line']}", flush=True)
    return True


def totals(place: Path) -> dict[str, dict[str, int]]:
    """Returns how many inputs of each family had each outcome."""
    return {
        path.stem: dict(sorted(collections.Counter(json.loads(line)["outcome"] for line in path.open()).items()))
        for path in sorted(place.glob("*.jsonl"))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="*", default=list(made.BASES), help="default all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--share", type=float, default=1.0, help="of the inputs, chosen at random")
    parser.add_argument("--draws", type=int, default=60, help="of several keys, for each group and base")
    parser.add_argument("--minutes", type=float, default=1e9, help="of this run; the next one goes on behind it")
    parser.add_argument("--place", type=Path, default=Path("build/config_sweep"), help="folder for what was found")
    parser.add_argument("--scratch", help="folder for checkpoints, one that is in memory if there is one")
    parser.add_argument("--only", help="FAMILY:NUMBER: shows what comes of it, and writes nothing")
    parser.add_argument("--save", action="store_true", help="writes the counts into bench/results once all are done")
    parser.add_argument("--fresh", action="store_true", help="forgets what was found before")
    args = parser.parse_args()
    os.environ |= {"GOSSAMER_MEASURE": "0", "OMP_NUM_THREADS": "1"}
    for name in ("transformers", "gossamer"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    if args.only:
        only(args)
        return
    if args.fresh:
        shutil.rmtree(args.place, ignore_errors=True)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))  # a model that takes more is refused by its reader
    args.place.mkdir(parents=True, exist_ok=True)
    for family in args.families:  # all are read now, so that a long run is of one state of the sources
        arch.family({"model_type": family})
    end = time.monotonic() + 60 * args.minutes
    late = [family for family in args.families if not run(family, args, end)]
    found = totals(args.place)
    every = collections.Counter[str]()
    for counts in found.values():
        every.update(counts)
    print(json.dumps(dict(every)))
    if late:
        print(f"not done: {', '.join(late)}")
        return
    if not args.save:
        return
    options = {"seed": args.seed, "share": args.share, "draws": args.draws, "transformers": transformers.__version__}
    print(write_result("config_sweep", {"options": options, "all": dict(every), "families": found}))


def only(args: argparse.Namespace) -> None:
    """Shows one input."""
    family, _, number = args.only.partition(":")
    every = list(made.inputs(family, args.seed, args.draws))
    base, config, change = every[int(number)]
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        sweep = Sweep(family, Path(scratch))
        start = next(one for one in every if one[0] == base)
        sweep.judge(*start)
        print(json.dumps({"model_type": family, **made.changed(config, change)}, indent=1))
        print(json.dumps({"change": change, **sweep.judge(base, config, change)}, indent=1))


if __name__ == "__main__":
    main()
