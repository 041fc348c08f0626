"""Results as text."""

from collections.abc import Mapping, Sequence
from typing import Any

from cells import GIB, METHODS, MODELS, OURS
from floor import Phase, Rates, least_seconds
from measure import exponent, summary

_FIT_FROM = (256, 1024)  # below 1024, calls cost more than operations


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Align rows of cells: the first column to the left, the others to the right."""
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(sizes[0])]
        cells += [cell.rjust(size) for cell, size in zip(row[1:], sizes[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def model_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Lay the models of one cell out; a line below says why one has no figures."""
    header = ["", "min, ms", "median, ms", "steps", "x min", "x median", "first call, s"]
    header += ["peak, GiB", "imports, GiB"]
    on_device = any(result.get("memory", {}).get("device_peak") for result in results.values())
    rows = [header + (["device, GiB"] if on_device else [])]
    reasons = []
    timings = summary(results, OURS)
    for name, result in results.items():
        if name not in timings:
            reasons.append(f"{MODELS[name]}: {result['reason']}")
            continue
        row, memory = timings[name], result["memory"]
        ratios = [f"{row[key]:.2f}" if key in row else "-" for key in ("min_ratio", "median_ratio")]
        sizes = [memory["peak"], memory["imports"]] + [memory["device_peak"] or 0] * on_device
        times = [_ms(row["min"]), _ms(row["median"]), f"{row['steps']:.0f}", *ratios]
        first_call = f"{result['first_call']:.1f}"
        rows.append([MODELS[name], *times, first_call, *(f"{size / GIB:.2f}" for size in sizes)])
    return "\n".join([columns(rows), *reasons])


def floor_table(parts: Sequence[Phase], rates: Rates, measured: float) -> str:
    """Lay the floor out phase by phase, and how far above it the measured seconds are."""
    rows = [["", "GFLOP", "MB", "floor, ms", "bound by"]]
    for part in parts:
        bound = "operations" if part.flops / rates.flops > part.bytes / rates.bytes else "bytes"
        rows.append([part.name, *_amounts([part]), _ms(part.seconds(rates)), bound])
    floor = least_seconds(parts, rates)
    rows.append(["all", *_amounts(parts), _ms(floor), ""])
    rows.append(["measured (min)", "", "", _ms(measured), f"{measured / floor:.2f} x floor"])
    note = "\nbelow the floor: the rates were disturbed, measure again" if measured < floor else ""
    return columns(rows) + note


def rates_line(rates: Rates) -> str:
    """Say what the machine can do."""
    return (
        f"rates: {rates.flops / 1e9:.0f} GFLOP/s (product of 4096 x 4096 matrices), "
        f"{rates.bytes / 1e9:.0f} GB/s (80 MB read and written in place)"
    )


def layer_table(by_width: Mapping[int, Mapping[str, Mapping[str, Any]]]) -> str:
    """Lay one layer's minima out by width, and the exponents fitted to them."""
    rows = [["width", *(f"{label}, ms" for label in METHODS.values())]]
    minima: dict[str, dict[int, float]] = {name: {} for name in METHODS}
    notes = []
    for width, results in by_width.items():
        cells = []
        for name, label in METHODS.items():
            result = results[name]
            if times := result.get("seconds"):
                minima[name][width] = min(times)
                cells.append(_ms(min(times)))
            else:
                short = result["reason"].startswith("over")
                cells.append(result["reason"] if short else "failed")
                notes += [] if short else [f"{label}, width {width}: {result['reason']}"]
        rows.append([str(width), *cells])
    for low in _FIT_FROM:
        fits = [exponent(seconds, low, max(by_width)) for seconds in minima.values()]
        cells = [f"{fit[0]:.2f} ({fit[1]}..{fit[2]})" if fit else "-" for fit in fits]
        rows.append([f"exponent from {low}", *cells])
    return "\n".join([columns(rows), *notes])


def _amounts(parts: Sequence[Phase]) -> list[str]:
    flops, bytes_ = sum(part.flops for part in parts), sum(part.bytes for part in parts)
    return [f"{flops / 1e9:.2f}", f"{bytes_ / 1e6:.1f}"]


def _ms(seconds: float) -> str:
    milliseconds = seconds * 1e3
    return f"{milliseconds:.1f}" if milliseconds >= 10 else f"{milliseconds:.3f}"
