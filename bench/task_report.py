"""Lays scores and speeds of bench/tasks.py and bench/task_speeds.py side by side: docs/tasks-measured.md and its plots.

    python bench/task_report.py

No number of that page is written by hand; it has what lies in bench/results. Differences are paired by test item: of
each item the mean over the seeds that both models have, and a bootstrap over words or countries gives the bound.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import RESULTS, ROOT
from numpy.typing import NDArray

from gossamer.pictures import legend_below, new_figure, place_labels, plain_ticks, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOCS = ROOT / "docs"
PAGE = "tasks-measured.md"
FOUR_BITS = ("dense int4:32", "dense int4:32-head4", "llama Q4_0", "llama Q4_K_M")
DRAWS = 2000
ERRORS = {"phonemes": "words that are wrong", "extraction": "fields that are wrong"}
_INTRODUCTION = (
    "Made by `python bench/task_report.py` from `bench/results/task-*.json`. Every model of a table was trained on the "
    "same data for as many tokens, a teacher's among them where there is one. Speeds, and the sizes that go with them, "
    "are of `task-speeds.json`, one sitting. The loss is against the best 4-bit form of the dense model, of those with "
    "most seeds, paired by test item, with the upper bound of a 95% interval (bootstrap) behind it. The interval is "
    "for other test items, and these trainings; what other trainings may change is what the losses by seed show."
)

Errors = dict[int, NDArray[np.float64]]
"""Of each seed, wrong units and units of every test item, [items, 2]."""


def read(task: str) -> tuple[dict[str, Errors], dict[str, dict[str, Any]], list[str], list[dict[str, Any]]]:
    """Returns errors and figures of each form of a task, the groups of its test items, and the files' contents."""
    errors: dict[str, Errors] = {}
    figures: dict[str, dict[str, Any]] = {}
    groups: list[str] = []
    files = []
    for path in sorted(RESULTS.glob(f"task-{task}-*-s*.json")):
        file = json.loads(path.read_text(encoding="utf-8"))
        files.append(file)
        groups = file["groups"]
        for row in file["rows"]:
            errors.setdefault(row["row"], {})[file["seed"]] = wrong(task, row["items"])
            figures[row["row"]] = row
    return errors, figures, groups, files


def wrong(task: str, items: Mapping[str, Any]) -> NDArray[np.float64]:
    """Returns wrong units and units of every test item, [items, 2]."""
    if task == "phonemes":
        exact = np.array([int(one) for one in items["exact"]], np.float64)
        return np.stack([1 - exact, np.ones_like(exact)], 1)
    units = np.array(items["units"], np.float64)
    return np.stack([units - np.array(items["points"], np.float64), units], 1)


def share(errors: NDArray[np.float64]) -> float:
    """Wrong units over units."""
    return float(errors[:, 0].sum() / errors[:, 1].sum())


def mean(form: Errors) -> float:
    """The share that is wrong, over all seeds."""
    return sum(map(share, form.values())) / len(form)


def loss(one: Errors, base: Errors, groups: Sequence[str]) -> tuple[float, float] | None:
    """Returns what a form loses against another, and the upper end of a 95% interval; None without a common seed.

    Args:
        one: The form.
        base: The other.
        groups: What the test items belong to: those of a group are drawn together.
    """
    seeds = sorted(one.keys() & base.keys())
    if not seeds:
        return None
    _, places = np.unique(groups, return_inverse=True)
    sums = np.zeros((2, places.max() + 1, 2))
    for side, form in enumerate((one, base)):
        for seed in seeds:
            np.add.at(sums[side], places, form[seed] / len(seeds))
    drawn = np.random.default_rng(0).integers(0, sums.shape[1], (DRAWS, sums.shape[1]))
    totals = sums[:, drawn].sum(2)
    differences = totals[0, :, 0] / totals[0, :, 1] - totals[1, :, 0] / totals[1, :, 1]
    return share(sums[0]) - share(sums[1]), float(np.quantile(differences, 0.975))


def by_seed(one: Errors, base: Errors) -> str:
    """What a form loses against another, in points, for each seed that both have."""
    return " ".join(f"{100 * (share(one[seed]) - share(base[seed])):+.1f}" for seed in sorted(one.keys() & base.keys()))


def base_of(errors: Mapping[str, Errors]) -> str | None:
    """The 4-bit form of the dense model that is wrong least, of those with most seeds."""
    there = [name for name in FOUR_BITS if name in errors]
    most = max((len(errors[name]) for name in there), default=0)
    return min((name for name in there if len(errors[name]) == most), key=lambda name: mean(errors[name]), default=None)


def section(task: str, speeds: Mapping[str, Any]) -> str:
    """A task's table and plot; nothing where no row is there."""
    errors, figures, groups, files = read(task)
    if not errors:
        return ""
    base = base_of(errors)
    header = ["model", "seeds", "wrong", "loss, at most", "by seed", "MB", "bits", "zeros", "tokens/s"]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for name in sorted(errors, key=lambda name: (not name.startswith("dense"), name)):
        timed = speeds.get(name, {})
        row = {**figures[name], **{key: timed[key] for key in ("bytes", "bits") if timed.get(key)}}
        found = loss(errors[name], errors[base], groups) if base else None
        lines.append(
            [
                name,
                str(len(errors[name])),
                f"{mean(errors[name]):.1%}",
                f"{100 * found[0]:+.1f}, {100 * found[1]:+.1f}" if found and name != base else "",
                by_seed(errors[name], errors[base]) if base and name != base else "",
                f"{row.get('file_bytes', row['bytes']) / 1e6:.0f}",
                "" if "file_bytes" in row else f"{row['bits']:.2f}",
                f"{row['zeros']:.0%}",
                f"{timed['tokens_per_second']:.0f}" if timed else "",
            ]
        )
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    count = len(groups) if len(set(groups)) == len(groups) else f"{len(groups)} of {len(set(groups))} groups,"
    trained = [one for file in files for one in file["training"].values()]
    tokens = sorted({one["tokens"] for one in trained})
    text = f"{ERRORS[task].capitalize()}, of {count} test items. Training runs of {', '.join(map(str, tokens))} tokens."
    if base:
        text += f" The best 4-bit form of the dense model, of those with {len(errors[base])} seeds, is `{base}`."
    parts = [f"## {task.capitalize()}", text, table]
    points = {name: (speeds[name]["tokens_per_second"], mean(form)) for name, form in errors.items() if name in speeds}
    if points:
        path = DOCS / f"tasks-{task}.svg"
        draw(new_figure(path, height=4.0), points, ERRORS[task], path)
        parts.append(f"![{ERRORS[task].capitalize()}, against tokens a second](tasks-{task}.svg)")
    return "\n\n".join(parts)


def draw(figure: Figure, points: Mapping[str, tuple[float, float]], what: str, path: Path) -> None:
    """Draws the share that is wrong against tokens a second.

    Args:
        figure: An empty one.
        points: Speed and share by name.
        what: The share is of.
        path: File to write.
    """
    axes = figure.subplots()
    names = sorted(points, key=lambda name: -points[name][0])
    colours = [
        "tab:orange" if name.startswith("llama") else "tab:gray" if name.startswith("dense") else "tab:blue"
        for name in names
    ]
    places = [(points[name][0], 100 * points[name][1]) for name in names]
    handles = [axes.scatter(*place, color=colour, s=14) for place, colour in zip(places, colours, strict=True)]
    axes.set(xlabel="tokens a second, writing", ylabel=f"{what}, %")
    axes.margins(0.08)
    axes.grid(alpha=0.3)
    plain_ticks(axes.xaxis)
    plain_ticks(axes.yaxis)
    legend_below(figure, handles, [f"{number}  {name}" for number, name in enumerate(names, 1)], 4.0)
    place_labels(axes, places, [str(number + 1) for number in range(len(names))], colours)
    save_figure(figure, path)


def page() -> str:
    """The whole page."""
    path = RESULTS / "task-speeds.json"
    speeds = json.loads(path.read_text(encoding="utf-8"))["forms"] if path.exists() else {}
    parts = ["# Tasks, measured", _INTRODUCTION, *(section(task, speeds) for task in ERRORS)]
    text = "\n\n".join(part for part in parts if part) + "\n"
    return re.sub(r"(?m)^(?![|!#]).{121,}$", lambda found: _wrapped(found[0]), text)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def main() -> None:
    path = DOCS / PAGE
    part = path.with_suffix(".part")
    part.write_text(page(), encoding="utf-8")
    part.replace(path)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
