"""Quantities as a person says them, the same way wherever they are said."""

import math

STEPS = ("bytes", "kB", "MB", "GB", "TB", "PB")

SMALL = (("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9))
"""Units of times below a tenth of a second."""


def duration(seconds: float) -> str:
    """Return a time: two digits up to a tenth of a second, tenths of seconds up to a minute, then two units.

    What is below 0, as clocks that were set back make it, is 0.
    """
    if seconds <= 0:
        return "0 s"
    if math.isinf(seconds):
        return "for ever"
    if seconds < 0.0995:
        rounded = float(f"{seconds:.2g}")
        unit, scale = next((pair for pair in SMALL if rounded >= pair[1]), SMALL[-1])
        return f"{float(f'{rounded / scale:.2g}'):g} {unit}"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    seconds = round(seconds)
    if seconds < 3600:
        return _two(int(seconds // 60), "min", int(seconds % 60), "s")
    minutes = int(seconds // 60)
    hours = minutes // 60
    return _two(hours, "h", minutes % 60, "min") if hours < 48 else _two(hours // 24, "d", hours % 24, "h")


def size(num_bytes: float, *, at_least: bool = False) -> str:
    """Return a number of bytes in powers of a thousand.

    Args:
        num_bytes: The number.
        at_least: Round up, where it is said how much is needed.
    """
    if num_bytes < 1000:
        return "1 byte" if num_bytes == 1 else f"{num_bytes:.0f} bytes"
    step = 0
    while num_bytes >= 999.95 and step + 1 < len(STEPS):
        num_bytes, step = num_bytes / 1000, step + 1
    tenths = math.ceil(round(10 * num_bytes, 6)) if at_least else round(10 * num_bytes)
    return f"{tenths / 10:,.1f} {STEPS[step]}"


def _two(large: int, unit: str, small: int, smaller: str) -> str:
    return f"{large:,} {unit} {small} {smaller}" if small else f"{large:,} {unit}"
