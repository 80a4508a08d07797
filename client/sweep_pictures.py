"""The picture of a sweep's report: what each setting reached, and what it gained over its baseline, seed by seed.

Matplotlib is imported when the picture is drawn, never before. Lengths are in inches.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

from client.pictures import BLUE, FAINT, INK, ORANGE, VERMILION, heading, new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from api.sweeps.schemas import SweepReport, SweepRow

MAX_ROWS = 60
GREY = "#5b6670"
_ROW = 0.4
_HEAD, _FOOT = 0.98, 0.78
_ABOVE, _BELOW = -0.13, 0.17
"""Within a row: the mean above its seeds."""
_WIDTH = 12.6
_LINE = 50
"""Characters of a label in one of its two lines."""
_COLOURS = {"better": BLUE, "worse": VERMILION, "no difference shown": GREY}


def draw_sweep(report: SweepReport, path: Path) -> Path:
    """AP of every row's runs on the left, paired gains with their mean and 95 % interval on the right."""
    rows = list(report.rows)[:MAX_ROWS]
    height = _HEAD + _FOOT + _ROW * max(2, len(rows))
    figure = new_figure(_WIDTH, height)
    heading(figure, _title(report), _note(report))
    place = {"top": 1 - _HEAD / height, "bottom": _FOOT / height}
    grid = figure.add_gridspec(1, 2, left=_label_width(rows) / _WIDTH, right=0.8, wspace=0.06, **place)
    aps, gains = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    for axes in (aps, gains):
        _plain(axes, len(rows))
    _draw_aps(aps, rows, report.teacher_ap)
    _draw_gains(gains, rows)
    return save(figure, path)


def _title(report: SweepReport) -> str:
    return f"{_plainly(report.name)}: gain over the baseline of the same seed"


def _note(report: SweepReport) -> str:
    state = "" if report.complete else f"NOT COMPLETE: {report.done} of {report.total} jobs have ended. "
    left_out = f" The first {MAX_ROWS} of {len(report.rows)} rows." if len(report.rows) > MAX_ROWS else ""
    return f"{state}Dots are seeds, diamonds are means, bars are 95 % intervals of the mean (Student's t).{left_out}"


def _label_width(rows: Sequence[SweepRow]) -> float:
    longest = max((len(line) for row in rows for line in _wrapped(row.label).split("\n")), default=0)
    return 0.45 + 0.075 * longest


def _wrapped(label: str) -> str:
    return _plainly("\n".join(wrap(label, _LINE, max_lines=2, placeholder=" …")))


def _plainly(text: str) -> str:
    """Matplotlib takes what stands between dollars for mathematics."""
    return text.replace("$", r"\$")


def _plain(axes: Axes, num_rows: int) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(colors="#55606a", labelsize=8.5, length=3)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e6e9ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_ylim(max(2, num_rows) - 0.4, -0.6)
    axes.set_yticks([])


def _draw_aps(axes: Axes, rows: Sequence[SweepRow], teacher: float | None) -> None:
    axes.set_yticks(range(len(rows)), [_wrapped(row.label) for row in rows])
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_color(ORANGE if row.role == "baseline" else INK)
        label.set_fontsize(9.5 if "\n" not in label.get_text() else 8.2)
    for y, row in enumerate(rows):
        colour = ORANGE if row.role == "baseline" else BLUE
        values = [100 * run.ap for run in row.runs if run.ap is not None]
        _dots(axes, values, y, colour)
        if row.ap_mean is not None:
            axes.plot(100 * row.ap_mean, y + _ABOVE, marker="D", markersize=6, color=colour, zorder=3)
    if teacher is not None:
        axes.axvline(100 * teacher, color=GREY, linestyle=(0, (1.2, 1.2)), linewidth=1.4)
        axes.annotate(
            f"teacher {100 * teacher:.1f}", (100 * teacher, 1), xycoords=("data", "axes fraction"), xytext=(0, 3),
            textcoords="offset points", ha="center", fontsize=8.5, color=GREY,
        )  # fmt: skip
    axes.margins(x=0.08)
    if not any(row.runs_done for row in rows):
        _say_instead(axes, "no run has succeeded yet")
    axes.set_xlabel("AP at IoU .50:.95, percent", fontsize=9, color="#55606a")


def _draw_gains(axes: Axes, rows: Sequence[SweepRow]) -> None:
    low, high = _range(rows)
    axes.set_xlim(low, high)
    for y, row in enumerate(rows):
        colour = _COLOURS.get(row.remark or "", GREY)
        _dots(axes, [100 * run.gain for run in row.runs if run.gain is not None], y, colour)
        if row.gain_low is not None and row.gain_high is not None:
            _bar(axes, 100 * row.gain_low, 100 * row.gain_high, y, colour)
        if row.gain_mean is not None:
            axes.plot(100 * row.gain_mean, y + _ABOVE, marker="D", markersize=6.5, color=colour, zorder=3)
        axes.annotate(
            _words(row), (1, y), xycoords=("axes fraction", "data"), xytext=(8, 0), textcoords="offset points",
            va="center", fontsize=8.8, color=colour if row.remark else GREY, annotation_clip=False,
        )  # fmt: skip
    axes.set_xlabel("gain, points of AP", fontsize=9, color="#55606a")
    if any(row.pairs for row in rows):
        axes.axvline(0, color=INK, linewidth=1.2, zorder=1)
    else:
        _say_instead(axes, "no pair of runs has succeeded yet")


def _range(rows: Sequence[SweepRow]) -> tuple[float, float]:
    """Every seed and zero, and of the intervals what is not far outside: two seeds make very wide ones."""
    gains = [100 * run.gain for row in rows for run in row.runs if run.gain is not None]
    low, high = min(gains, default=0.0), max(gains, default=0.0)
    low, high = min(low, 0.0), max(high, 0.0)
    room = max(1.0, high - low)
    lows = [100 * row.gain_low for row in rows if row.gain_low is not None]
    highs = [100 * row.gain_high for row in rows if row.gain_high is not None]
    low = max(min([low, *lows]), low - room)
    high = min(max([high, *highs]), high + room)
    return low - 0.06 * room, high + 0.06 * room


def _bar(axes: Axes, low: float, high: float, y: float, colour: str) -> None:
    """An interval; an arrow where it goes on beyond the picture."""
    left, right = axes.get_xlim()
    axes.plot([max(low, left), min(high, right)], [y + _ABOVE] * 2, color=colour, linewidth=2.4, zorder=2)
    for goes_on, edge, marker in ((low < left, left, "<"), (high > right, right, ">")):
        if goes_on:
            axes.plot(edge, y + _ABOVE, marker=marker, markersize=6, color=colour, clip_on=False, zorder=3)


def _dots(axes: Axes, values: Sequence[float], y: float, colour: str) -> None:
    axes.scatter(
        values, [y + _BELOW] * len(values), s=22, facecolors="white", edgecolors=colour, linewidths=1.3, zorder=4
    )


def _words(row: SweepRow) -> str:
    if row.gain_mean is None:
        return "baseline" if row.role == "baseline" else ""
    seeds = f"n={row.pairs}"
    if row.gain_low is None or row.gain_high is None:
        return f"{100 * row.gain_mean:+.1f}  ({seeds})"
    interval = f"[{100 * row.gain_low:+.1f}, {100 * row.gain_high:+.1f}]"
    return f"{100 * row.gain_mean:+.1f}  {interval}  {seeds}"


def _say_instead(axes: Axes, why: str) -> None:
    axes.set_xticks([])
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", fontsize=10, color=GREY)
