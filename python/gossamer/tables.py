"""Text in aligned columns."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1, tail: int = 0) -> str:
    """Lays rows out in columns, the first `left` and the last `tail` of them left-aligned, the others right-aligned.

    Args:
        header: Names of the columns.
        rows: Cells; every row as long as the header.
        left: How many columns hold text.
        tail: How many at the end do.

    Returns:
        Lines without a final newline.
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if index < left or index >= len(widths) - tail else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, rows)])
