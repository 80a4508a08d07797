"""The bars of `tid explain`: gains by class, errors by kind.

Matplotlib is imported when a picture is drawn, never before. Lengths of figures are in inches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.explain_curves import SOFT, plain_numbers
from client.pictures import BLUE, INK, LOOKS, VERMILION, heading, new_figure, plain_axes, save
from tid_core.error_kinds import ERROR_KINDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from api.schemas import ClassGain, ErrorFigures

ROLES = ("teacher", "baseline", "student")
MAX_CLASSES = 30


def draw_classes(rows: Sequence[ClassGain], path: Path, *, title: str) -> Path:
    """The gain of each class over the twin, the largest first; at most MAX_CLASSES, then those that changed most."""
    known = [row for row in rows if row.gain is not None]
    chosen = sorted(known, key=lambda row: -abs(row.gain or 0))[:MAX_CLASSES]
    chosen.sort(key=lambda row: row.gain or 0)
    height = 2.0 + 0.27 * max(4, len(chosen))
    figure = new_figure(10.5, height)
    all_of_them = f"all {len(known)} classes" if len(chosen) == len(known) else _most_changed(len(chosen), len(known))
    heading(figure, title, f"AP of the student minus AP of the same student without distillation; {all_of_them}")
    grid = figure.add_gridspec(1, 1, left=0.2, right=0.77, top=1 - 1.0 / height, bottom=0.92 / height)
    axes = figure.add_subplot(grid[0, 0])
    plain_axes(axes)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color="#e6e9ec", linewidth=0.8)
    gains = [100 * (row.gain or 0) for row in chosen]
    places = range(len(chosen))
    axes.barh(places, gains, color=[BLUE if gain >= 0 else VERMILION for gain in gains], height=0.68)
    ceilings = [(place, _ceiling(row)) for place, row in enumerate(chosen)]
    marks = [(place, ceiling) for place, ceiling in ceilings if ceiling is not None]
    if marks:
        y, x = zip(*marks, strict=True)
        axes.scatter(x, y, marker="D", s=17, facecolor="white", edgecolor=INK, linewidth=1.1, zorder=3)
    axes.axvline(0, color=INK, linewidth=0.9)
    axes.set_yticks(list(places), [_short(row.name) for row in chosen], fontsize=8.5, color=INK)
    axes.set_ylim(-0.7, max(4, len(chosen)) - 0.3)
    axes.set_xlabel("gain in AP points", fontsize=9, color=SOFT)
    column: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "fontsize": 8.5, "va": "center"}
    above = max(4, len(chosen)) + 0.1
    axes.text(1.1, above, "gain", color=SOFT, ha="right", **column)
    axes.text(1.13, above, "alone → taught", color=SOFT, ha="left", **column)
    for place, row in enumerate(chosen):
        axes.text(1.1, place, _signed(100 * (row.gain or 0)), color=INK, ha="right", **column)
        reached = f"{100 * (row.baseline or 0):.1f} → {100 * (row.student or 0):.1f}"
        axes.text(1.13, place, reached, color=INK, ha="left", **column)
    _class_legend(figure, height, teacher=bool(marks))
    return save(figure, path)


def _most_changed(shown: int, known: int) -> str:
    return f"the {shown} of {known} classes that changed most"


def _ceiling(row: ClassGain) -> float | None:
    """What the student would gain if it were as good as its teacher, in AP points."""
    return None if row.teacher is None or row.baseline is None else 100 * (row.teacher - row.baseline)


def _class_legend(figure: Figure, height: float, *, teacher: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Patch(color=BLUE, label="better than alone"),
        Patch(color=VERMILION, label="worse than alone"),
    ]
    if teacher:
        mark: dict[str, Any] = {"marker": "D", "markerfacecolor": "white", "markeredgecolor": INK, "markersize": 4.5}
        handles.append(Line2D([], [], linestyle="", label="as good as the teacher", **mark))
    _legend_below(figure, height, handles)


def draw_errors(errors: Mapping[str, Mapping[str, ErrorFigures]], path: Path, *, title: str, note: str) -> Path:
    """Role to kind to its errors: on the left what AP50 is lost to each kind, on the right how many there are."""
    height = 6.3
    figure = new_figure(13.2, height)
    heading(figure, title, note)
    grid = figure.add_gridspec(
        1, 2, left=0.235, right=0.975, top=1 - 1.1 / height, bottom=0.95 / height, wspace=0.1, width_ratios=(1.15, 1)
    )
    lost, counts = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    roles = [role for role in ROLES if role in errors]
    for axes in (lost, counts):
        plain_axes(axes)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", color="#e6e9ec", linewidth=0.8)
        axes.set_ylim(len(ERROR_KINDS) - 0.5, -0.5)
        axes.set_yticks([])
        for edge in range(1, len(ERROR_KINDS)):
            axes.axhline(edge - 0.5, color="#eef0f2", linewidth=0.8, zorder=0)
    for kind, meaning in ERROR_KINDS.items():
        place = list(ERROR_KINDS).index(kind)
        side: dict[str, Any] = {"transform": lost.get_yaxis_transform(), "ha": "right"}
        lost.text(-0.02, place - 0.04, kind, fontsize=10, color=INK, fontweight="bold", va="bottom", **side)
        lost.text(-0.02, place + 0.04, meaning, fontsize=7.6, color=SOFT, va="top", **side)
    _draw_lost(lost, errors, roles)
    _draw_counts(counts, errors, roles)
    _role_legend(figure, height, roles)
    return save(figure, path)


def _draw_lost(axes: Axes, errors: Mapping[str, Mapping[str, ErrorFigures]], roles: Sequence[str]) -> None:
    width = 0.78 / max(len(roles), 1)
    largest = 0.0
    for place, kind in enumerate(ERROR_KINDS):
        for row, role in enumerate(roles):
            found = errors[role].get(kind)
            if found is None or found.dap50 is None:
                continue
            y, value = place + (row - (len(roles) - 1) / 2) * width, 100 * found.dap50
            axes.barh(y, value, height=width * 0.86, color=LOOKS[role].colour)
            axes.annotate(
                f"{value:.1f}",
                (value, y),
                xytext=(4, 0),
                textcoords="offset points",
                fontsize=8,
                color=INK,
                va="center",
            )
            largest = max(largest, value)
    axes.set_xlim(0, max(1.0, largest * 1.13))
    axes.set_title("what mending would gain", loc="left", fontsize=11, color=INK, fontweight="bold")
    axes.set_xlabel("AP50 points (dAP50); each kind mended alone, so they do not add up", fontsize=9, color=SOFT)


def _draw_counts(axes: Axes, errors: Mapping[str, Mapping[str, ErrorFigures]], roles: Sequence[str]) -> None:
    """Dots, for bars on a logarithmic axis would have no length; zero stands at the left end."""
    width = 0.78 / max(len(roles), 1)
    largest = max((found.count for kinds in errors.values() for found in kinds.values()), default=1)
    axes.set_xscale("symlog", linthresh=1, linscale=0.4)
    axes.set_xlim(-0.15, max(10, largest) * 4)
    for place, kind in enumerate(ERROR_KINDS):
        for row, role in enumerate(roles):
            found = errors[role].get(kind)
            if found is None:
                continue
            y, colour = place + (row - (len(roles) - 1) / 2) * width, LOOKS[role].colour
            axes.plot([0, found.count], [y, y], color=colour, linewidth=1.2, alpha=0.45)
            axes.plot([found.count], [y], "o", color=colour, markersize=6)
            axes.annotate(
                f"{found.count:,}", (found.count, y), xytext=(7, 0), textcoords="offset points",
                fontsize=8, color=INK, va="center",
            )  # fmt: skip
    axes.set_title("how many there are", loc="left", fontsize=11, color=INK, fontweight="bold")
    axes.set_xlabel("detections, or missed objects; log scale", fontsize=9, color=SOFT)
    plain_numbers(axes.xaxis)
    axes.minorticks_off()


def _role_legend(figure: Figure, height: float, roles: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    names = {"baseline": "baseline: the same student without distillation"}
    _legend_below(figure, height, [Patch(color=LOOKS[role].colour, label=names.get(role, role)) for role in roles])


def _legend_below(figure: Figure, height: float, handles: list[Any]) -> None:
    figure.legend(
        handles=handles, loc="lower center", ncols=len(handles), frameon=False, fontsize=9, labelcolor=INK,
        bbox_to_anchor=(0.5, 0.06 / height), columnspacing=1.8,
    )  # fmt: skip


def _signed(value: float) -> str:
    """+1.2, -0.3, and 0.0 without a sign."""
    return f"{round(value, 1):+.1f}" if round(value, 1) else "0.0"


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"
