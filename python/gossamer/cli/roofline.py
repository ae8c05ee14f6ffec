"""`gossamer roofline`: what this machine's memory and the kernels reach, and where sparse weights win."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from ..tables import table
from .options import integer
from .output import print_json
from .progress import progress

SUMMARY = "measure the bandwidth of this machine and the speed of the kernels"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "--threads", type=integer(1), default=0, metavar="N", help="most threads to read with (default: as many as pay)"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="what to measure: the processor, or a GPU's memory"
    )
    parser.add_argument(
        "--refresh", action="store_true", help="measure again what was measured before, the speed of formats included"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document, with every usable kernel")


def run(args: argparse.Namespace) -> int:
    """Measures or recalls, prints, and returns the exit code."""
    from ..machine import format_rates
    from ..machine.roofline import KernelRate, roofline

    if args.device == "cuda":
        return _gpu(args)
    with progress() as report:
        result = roofline(refresh=args.refresh, threads=args.threads, progress=report)
    formats = format_rates.kept()
    if args.refresh:
        with progress() as report:
            formats = {case: format_rates.remeasured(*case, report) for case in formats}
        for (type, cached), rates in formats.items():
            if format_rates.known(type, cached) != rates:
                print(
                    f"note: the speed of formats of {type} never settled or cannot be kept: is the machine busy?",
                    file=sys.stderr,
                )
    planned = [
        {
            "type": type,
            "weights_in": "cache" if cached else "memory",
            "format": format,
            "zeros": zeros,
            "positions_per_second": 1 / point.seconds,
        }
        for (type, cached), rates in formats.items()
        for format, points in rates.items()
        for zeros, point in zip(format_rates.zeros(format), points, strict=True)
    ]
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    if args.json:
        print_json({**result.to_dict(), "formats": planned})
        return 0
    machine = result.machine
    print(f"{machine['processor']}, {machine['cores']} CPUs, {machine['isa']}; measured {result.date}\n")
    print(
        f"Reads, 1e9 bytes a second: {result.memory_bytes / 1e6:.0f} MB in memory, and within the last-level cache of "
        f"{result.last_level_bytes / 1e6:.0f} MB"
    )
    rows = [(str(row.threads), f"{row.memory:.1f}", f"{row.cache:.1f}") for row in result.reads]
    print(table(("threads", "memory", "cache"), rows))

    def wins(rate: KernelRate) -> str:
        if rate.wins_below is None:
            return "" if rate.kernel.startswith("dense_") else "always"
        return f"below {rate.wins_below:.1f}" if rate.wins_below else "never"

    print(
        "\nKernels that run here, on one core with weights in its own cache: positions and bytes, 1e9 a second;\n"
        "and the bandwidth a core, in 1e9 bytes a second, below which they beat dense weights of the same type"
    )
    header = ("kernel", "zeros", "bits/position", "positions/s", "bytes/s", "beats dense")
    cells = [
        (
            rate.kernel,
            f"{rate.zeros:.0%}",
            f"{8 * rate.bytes_per_position:.2f}",
            f"{rate.positions_per_second:.1f}",
            f"{rate.gigabytes_per_second:.1f}",
            wins(rate),
        )
        for rate in result.kernels
        if rate.chosen
    ]
    print(table(header, cells))
    if planned:
        print("\nFormats that were chosen among, with all threads: positions, 1e9 a second")
        lines = [
            (
                *(str(row[name]) for name in ("type", "weights_in", "format")),
                f"{row['zeros']:.0%}",
                f"{row['positions_per_second']:.1f}",
            )
            for row in planned
        ]
        print(table(("values", "weights in", "format", "zeros", "positions/s"), lines))
    return 0


def _gpu(args: argparse.Namespace) -> int:
    from ..gpu.roofline import gpu_roof

    roof = gpu_roof(refresh=args.refresh)
    if args.json:
        print_json(asdict(roof))
    else:
        print(f"{roof.gpu}, {roof.multiprocessors} multiprocessors; measured {roof.date}\n")
        print(f"Reads, 1e9 bytes a second: {roof.bandwidth:.0f} in memory")
    return 0
