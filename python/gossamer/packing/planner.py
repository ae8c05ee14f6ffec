"""The choice of a format for a matrix, by the time that a core will take to read it and to work on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from .. import _core
from ..formats import INTEGER_TYPES, Shape, best_pattern, stored_bytes
from ..machine import format_rates
from ..progress import Progress

# Below these zeros a sparse format saves too little to be worth what it costs with several tokens at a time: where it
# is measured what a token gains, and where that is an estimate.
MIN_ZEROS, _MIN_ZEROS_ESTIMATED = 0.2, 0.35

# How many times as fast as dense weights a sparse format has to be. A tie goes to what has fewer bytes: matrices of
# real models are larger than those of the measurement, which hides some of what zeros gain. Estimates are worse than
# that, and few zeros have to pay for several tokens at a time, too.
_MIN_GAIN, _MIN_GAIN_ESTIMATED, _MIN_GAIN_OF_FEW = 1.0, 1.04, 1.1

# Rounding to integers turns some of the values that a pattern keeps into zeros, which bitmap skips. The pattern stays
# unless that saves more than this: devices with N:M units want it.
_NM_SLACK = 1.04

# Of the shorter of reading and working, the part that is not hidden behind the longer, as measured.
UNHIDDEN = 0.25

# CSR works in steps, and each of its blocks costs about as much as this many; rates are taken at 95% zeros, which makes
# about so many steps a block.
_CSR_BLOCK_STEPS = 0.75
_CSR_STEPS = 2.05


NOTHING_FASTER = "nothing is faster here"  # the reason of dense weights whose zeros do not pay


@dataclass(frozen=True)
class Machine:
    """What one core does while all are busy.

    Attributes:
        bandwidth: Bytes that it reads from memory, in 1e9 a second.
        rates: Positions of a matrix, zeros included, in 1e9 a second, that it works through for one token by
            (format, type), with weights in its cache: "bitmap" at 50% zeros, "csr" at 95%, "nm" at 2:4.
        measured: Whether this is the machine at hand; otherwise a usual one.
        formats: By type, what formats reach here with all threads where the weights will lie, as `format_rates`
            measures it. Where it is known it is believed before bandwidth and rates, which have to be put together.
        cores: Threads of `formats`.
    """

    bandwidth: float
    rates: dict[tuple[str, str], float]
    measured: bool = False
    formats: dict[str, format_rates.Rates] = field(default_factory=dict)
    cores: int = 1


def _rates(**rows: tuple[float, float, float, float]) -> dict[tuple[str, str], float]:
    formats = ("dense", "bitmap", "csr", "nm")
    return {(format, type): rate for type, row in rows.items() for format, rate in zip(formats, row, strict=True)}


# Measured on server cores at about 3.6 GHz; columns dense, bitmap, csr, nm. A core's share of the bandwidth is that of
# a machine all of whose cores read.
USUAL = {
    "avx512": Machine(
        15.0,
        _rates(
            f32=(20.0, 17.0, 17.0, 17.0),
            bf16=(20.0, 17.0, 17.0, 17.0),
            f16=(20.0, 17.0, 17.0, 17.0),
            int8=(64.0, 55.0, 165.0, 60.0),
            int4=(110.0, 57.0, 160.0, 57.0),
        ),
    ),
    "avx2": Machine(
        15.0,
        _rates(
            f32=(20.0, 14.0, 22.0, 14.0),
            bf16=(20.0, 14.0, 22.0, 14.0),
            f16=(20.0, 14.0, 22.0, 14.0),
            int8=(54.0, 20.0, 91.0, 50.0),
            int4=(54.0, 20.0, 84.0, 50.0),
        ),
    ),
}


def usual_machine(isa: str) -> Machine:
    """Returns what to expect of a tier of `_core.isas()`."""
    return USUAL["avx2" if isa in ("scalar", "avx2", "avx_vnni", "avx_vnni_evex", "avx512") else "avx512"]


def this_machine(
    type: str | None = None,
    progress: Progress | None = None,
    *,
    weights: int | None = None,
    measure: bool | None = None,
) -> Machine:
    """Returns what `gossamer roofline` has measured here, or a usual machine of this tier where it has not run.

    Args:
        type: A value type whose formats are to be compared: what is not known of them yet is measured now, in a few
            seconds, unless GOSSAMER_MEASURE=0 forbids it. None takes what is known.
        progress: Called with (done, total, what) while that goes on.
        weights: How many the whole model has, zeros included: small models stay in the last-level cache. None is one
            that does not.
        measure: Whether that may be measured; None asks the environment.
    """
    from ..machine import roofline

    machine = usual_machine(_core.isa())
    kept = roofline.cached()
    if kept is not None:
        rates = {}
        for row in kept.kernels:
            format, _, kind, activations = row.kernel.partition("__")[0].split("_")
            if row.chosen and activations == ("a8" if kind in INTEGER_TYPES else "f32"):
                rates[format, kind] = row.positions_per_second
        all_cores = kept.reads[-1]
        machine = Machine(all_cores.memory / all_cores.threads, rates, measured=True)
    if type is not None:
        wanted = format_rates.wanted() if measure is None else measure
        cached = weights is not None and format_rates.stays_cached(weights, type)
        found = format_rates.measured(type, cached, progress) if wanted else format_rates.known(type, cached)
        if found is not None:
            machine = replace(machine, formats={type: found}, cores=_core.default_threads(), measured=True)
    return machine


Lookup = Callable[[str | None], Machine]


def here(progress: Progress | None = None, weights: int | None = None) -> Lookup:
    """Returns `this_machine` as a function of the value type, which looks once a type."""
    found: dict[str | None, Machine] = {}

    def look(type: str | None) -> Machine:
        if type not in found:
            found[type] = this_machine(type, progress, weights=weights)
        return found[type]

    return look


def seconds(machine: Machine, shape: Shape, format: str, type: str, pattern: tuple[int, int] | None = None) -> float:
    """Returns the time that a token needs for a matrix, in seconds times the number of cores.

    Args:
        machine: Where it runs.
        shape: Of the stored values; see `measure`.
        format: One of `FORMATS`.
        type: One of `TYPES`.
        pattern: (N, M) of format "nm".
    """
    # Only patterns of 4 have a step that is the same for every word; kernels work on the others as on bitmaps.
    like = "bitmap" if pattern is not None and format == "nm" and pattern[1] != 4 else format
    if type in machine.formats:
        if like != format and pattern is not None:  # what it keeps, zeros among that included
            shape = replace(shape, nonzeros=shape.positions * pattern[0] // pattern[1])
        return machine.cores * format_rates.seconds(machine.formats[type], shape, like) * 1e-9
    read = stored_bytes(shape, format, type, pattern) / machine.bandwidth
    work = shape.positions / machine.rates[like, type]
    if format == "csr":
        steps = shape.steps / (len(shape.panels) * shape.csr_blocks)
        work *= (_CSR_BLOCK_STEPS + steps) / (_CSR_BLOCK_STEPS + _CSR_STEPS)
    return (max(read, work) + UNHIDDEN * min(read, work)) * 1e-9


def fastest_seconds(shape: Shape, type: str, machine: Machine | Lookup) -> float:
    """Returns the time of the fastest format, as `seconds` does; dense is one of them."""
    if not isinstance(machine, Machine):
        machine = machine(type)
    pattern = best_pattern(shape)
    formats = ["dense", "bitmap", "csr", *(["nm"] if pattern else [])]
    return min(seconds(machine, shape, format, type, pattern) for format in formats)


def token_seconds(
    shape: Shape, format: str, type: str, pattern: tuple[int, int] | None = None, weights: int | None = None
) -> float:
    """Returns the time that a token needs here for a matrix, with all threads, by what is known of this machine.

    Args:
        shape: As for `seconds`, as are those below.
        format: One of `FORMATS`.
        type: One of `TYPES`.
        pattern: (N, M) of format "nm".
        weights: As for `this_machine`.
    """
    machine = this_machine(type, weights=weights, measure=False)
    return seconds(machine, shape, format, type, pattern) / _core.default_threads()


@dataclass(frozen=True)
class Choice:
    """A format for a matrix, with the pattern of "nm" and the reason in words."""

    format: str
    pattern: tuple[int, int] | None
    reason: str


def choose(
    shape: Shape,
    type: str,
    format: str = "auto",
    machine: Machine | Lookup | None = None,
) -> Choice:
    """Chooses a matrix's format: the least time by estimate, and never more bytes than dense.

    Args:
        shape: Of the stored values; see `measure`.
        type: One of `TYPES`.
        format: "auto", or the format to take. "nm" needs a pattern that holds; without one "bitmap" takes its place.
        machine: Where it will run; by default `here`, which measures the first time that a sparse format could pay.
    """
    sizes = {name: stored_bytes(shape, name, type) for name in ("dense", "bitmap", "csr")}
    pattern = best_pattern(shape)
    if pattern is not None:
        sizes["nm"] = stored_bytes(shape, "nm", type, pattern)
    if format == "auto":
        if not isinstance(machine, Machine):
            machine = (machine or here())(type if _filled(shape) <= 1 - MIN_ZEROS else None)
        measured = type in machine.formats
        least = MIN_ZEROS if measured else _MIN_ZEROS_ESTIMATED
        if shape.zeros < least:
            del sizes["csr"]  # padding alone is no reason for it
        times = {
            name: seconds(machine, shape, name, type, pattern) for name, size in sizes.items() if size <= sizes["dense"]
        }
        if _filled(shape) > 1 - least:
            name, reason = "dense", "too few zeros to pay"
        else:
            few = _filled(shape) > 1 - _MIN_ZEROS_ESTIMATED
            gain = _MIN_GAIN_OF_FEW if few else _MIN_GAIN if measured else _MIN_GAIN_ESTIMATED
            name, reason = _fastest(times, gain, "as measured here" if measured else "by estimate")
    elif format == "nm" and sizes.get("nm", sizes["dense"]) >= sizes["dense"]:
        name, reason = "bitmap", "no N:M pattern holds, so bitmap instead of nm"
    else:
        name, reason = format, "asked for"
    kept = pattern if name == "nm" else None
    zeros = f"{100 * shape.zeros:.1f}% zeros" + (f", {kept[0]} of every {kept[1]} kept" if kept else "")
    bits = {one: 8 * size / (shape.rows * shape.cols) for one, size in sizes.items()}
    return Choice(name, kept, f"{zeros}: {reason} ({bits[name]:.2f} bits a weight, {bits['dense']:.2f} as dense)")


def _filled(shape: Shape) -> float:
    """The share of what dense stores that is not zero; padding counts."""
    return shape.nonzeros / shape.positions


def _fastest(times: dict[str, float], least: float, how: str) -> tuple[str, str]:
    """The format that pays best, if that is at least so many times as fast as dense, and why."""
    best = min((name for name in times if name != "nm"), key=lambda name: times[name])
    if "nm" in times and times["nm"] <= times[best] * _NM_SLACK:
        best = "nm"
    if times[best] * least > times["dense"]:
        return "dense", NOTHING_FASTER
    gain = f"{times['dense'] / times[best]:.2f} times as fast as dense {how}"
    return best, f"its pattern holds, {gain}" if best == "nm" else gain
