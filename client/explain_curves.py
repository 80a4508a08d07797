"""The curves of `tid explain`: a run beside its twin, term by term, and where it was taught.

Matplotlib is imported when a picture is drawn, never before. Lengths of figures are in inches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.pictures import (
    BLUE,
    FAINT,
    INK,
    LOOKS,
    epoch_means,
    heading,
    label_ends,
    new_figure,
    plain_axes,
    save,
    usual_top,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = Sequence[tuple[float, float]]
SOFT = "#55606a"
GREEN = "#009e73"
LEVELS = ("#00224e", "#434e6c", "#7d7c78", "#b0a06c", "#d9bf3a")
"""Of cividis, dark to light: the fine levels first."""
COLUMNS = 4


@dataclass(frozen=True)
class Run:
    """One job's series. `steps` maps a metric to (step, value) points, `ap` is (epoch, AP)."""

    role: str
    steps: Mapping[str, Points] = field(default_factory=dict)
    ap: Points = ()
    epoch_steps: float | None = None
    """Steps of an epoch, where they are known."""


@dataclass(frozen=True)
class Section:
    """A row of small panels, or several: a heading, and (title, metric) of each panel."""

    heading: str
    panels: list[tuple[str, str]]

    @property
    def rows(self) -> int:
        return -(-len(self.panels) // COLUMNS)


def draw_run(
    student: Run, baseline: Run | None, teacher_ap: float | None, sections: Sequence[Section], path: Path, *, title: str
) -> Path:
    """mAP and norms of gradients on the left, every loss term and the areas on the right.

    Args:
        sections: of loss terms, drawn for both runs; those whose metrics begin with `areas/` have a line a level.
    """
    shown = [section for section in sections if section.panels]
    rows = max(2, sum(section.rows for section in shown))
    height = max(6.4, 1.15 + 2.05 * rows)
    figure = new_figure(15.0, height)
    heading(figure, title, "thin: logged steps, bold: mean of each epoch; small panels over optimiser steps")
    top, bottom = 1 - 1.0 / height, 0.5 / height
    left = figure.add_gridspec(2, 1, left=0.05, right=0.29, top=top, bottom=bottom, hspace=0.42)
    _draw_ap(figure.add_subplot(left[0, 0]), student, baseline, teacher_ap)
    _draw_gradients(figure.add_subplot(left[1, 0]), student)
    grid = figure.add_gridspec(rows, COLUMNS, left=0.4, right=0.985, top=top, bottom=bottom, wspace=0.32, hspace=0.62)
    row = 0
    for section in shown:
        for place, (name, metric) in enumerate(section.panels):
            axes = figure.add_subplot(grid[row + place // COLUMNS, place % COLUMNS])
            draw = _draw_levels if metric.startswith("areas/") else _draw_term
            draw(axes, name, metric, student, baseline)
            if place == 0:
                _section_heading(figure, axes, section.heading)
            if place == 0 and metric.startswith("areas/"):
                _level_legend(figure, axes)
        row += section.rows
    _line_legend(figure, height, [run for run in (student, baseline) if run is not None])
    return save(figure, path)


def _draw_ap(axes: Axes, student: Run, baseline: Run | None, teacher_ap: float | None) -> None:
    plain_axes(axes)
    runs = [run for run in (baseline, student) if run is not None and run.ap]
    values = [value for run in runs for _, value in run.ap] + ([] if teacher_ap is None else [teacher_ap])
    last = max((epoch for run in runs for epoch, _ in run.ap), default=1.0)
    axes.set_ylim(0, max(5.0, min(100.0, 112 * max(values, default=0.0))))
    axes.set_xlim(0, last * 1.02)
    ends = []
    if teacher_ap is not None:
        look = LOOKS["teacher"]
        axes.axhline(100 * teacher_ap, color=look.colour, linestyle=look.dashes, linewidth=1.8)
        ends.append((last * 1.02, 100 * teacher_ap, f" teacher {100 * teacher_ap:.1f}", look))
    for run in runs:
        look, (x, y) = LOOKS[run.role], zip(*run.ap, strict=True)
        percent = [100 * value for value in y]
        axes.plot(x, percent, color=look.colour, linestyle=look.dashes, linewidth=2.2, marker="o", markersize=3.6)
        ends.append((x[-1], percent[-1], f" {run.role} {percent[-1]:.1f}", look))
    label_ends(axes, ends)
    _titled(axes, "mAP on the validation images", "epoch", "AP at IoU .50:.95, percent")
    if not values:
        _say(axes, "not evaluated yet")


def _draw_gradients(axes: Axes, student: Run) -> None:
    """Norms of the two losses, as they enter the total, at the pyramid's outputs; for plain training of all weights."""
    plain_axes(axes)
    lines = {"task": ("grad/task", BLUE, "-"), "distillation": ("grad/distill", GREEN, (0, (4, 1.4)))}
    known = {name: line for name, line in lines.items() if _positive(student.steps.get(line[0], ()))}
    if not known and _positive(student.steps.get("grad/norm", ())):
        known = {"all weights": ("grad/norm", BLUE, "-")}
    for name, (metric, colour, dashes) in known.items():
        points = _positive(student.steps[metric])
        dot = "o" if len(points) < 40 else ""
        style: dict[str, Any] = {"linestyle": dashes, "linewidth": 2 if dot else 1.4, "marker": dot, "markersize": 3.2}
        axes.plot(*zip(*points, strict=True), color=colour, label=name, **style)
    _titled(axes, "gradient norms, student", "step", "L2 norm, log scale")
    if not known:
        _say(axes, "no step measured yet")
        return
    _log(axes, [value for metric, *_ in known.values() for _, value in _positive(student.steps[metric])])
    axes.legend(fontsize=8.5, frameon=False, labelcolor=INK, ncols=2, loc="upper right", borderaxespad=0.1)


def _draw_term(axes: Axes, name: str, metric: str, student: Run, baseline: Run | None) -> None:
    plain_axes(axes)
    top = 0.0
    for run in (baseline, student):
        points = run.steps.get(metric, ()) if run is not None else ()
        if run is None or not points:
            continue
        look = LOOKS[run.role]
        means = epoch_means(points, run.epoch_steps) if run.epoch_steps else list(points)
        axes.plot(*zip(*points, strict=True), color=look.colour, linewidth=0.8, alpha=0.4)
        dot = "o" if len(means) < 4 else ""
        style: dict[str, Any] = {"linestyle": look.dashes, "linewidth": 1.9, "marker": dot, "markersize": 3.2}
        axes.plot(*zip(*means, strict=True), color=look.colour, **style)
        top = max(top, usual_top([value for _, value in points]), *(value for _, value in means))
    axes.set_ylim(0, top * 1.15 or 1.0)
    _small(axes, name)


def _draw_levels(axes: Axes, name: str, metric: str, student: Run, _baseline: Run | None) -> None:
    """A line for each level of `metric`, in percent of its points."""
    plain_axes(axes)
    levels = sorted(one for one in student.steps if one.startswith(f"{metric}/"))
    top = 0.0
    for level, colour in zip(levels, _level_colours(len(levels)), strict=True):
        points = [(step, 100 * value) for step, value in student.steps[level]]
        means = epoch_means(points, student.epoch_steps) if student.epoch_steps else points
        label = level.rpartition("/")[2].upper()
        axes.plot(*zip(*means, strict=True), color=colour, linewidth=2.0, label=label)
        top = max(top, *(value for _, value in means))
    axes.set_ylim(0, top * 1.15 or 1.0)
    _small(axes, name)


def _level_colours(number: int) -> list[str]:
    """As far apart as there are colours."""
    step = (len(LEVELS) - 1) / max(number - 1, 1)
    return [LEVELS[round(place * step)] for place in range(number)]


def _titled(axes: Axes, title: str, below: str, beside: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=INK, fontweight="bold")
    axes.set_xlabel(below, fontsize=9, color=SOFT)
    axes.set_ylabel(beside, fontsize=9, color=SOFT)


def _small(axes: Axes, name: str) -> None:
    axes.set_title(name, loc="left", fontsize=9.5, color=INK)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(_few_ticks())


def _few_ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=4, integer=True)


def _section_heading(figure: Figure, axes: Axes, text: str) -> None:
    box = axes.get_position()
    height = figure.get_size_inches()[1]
    figure.text(box.x0 - 0.025, box.y1 + 0.31 / height, text, fontsize=10, color=INK, fontweight="bold", va="bottom")


def _level_legend(figure: Figure, axes: Axes) -> None:
    """Beside the heading of its section."""
    box, height = axes.get_position(), figure.get_size_inches()[1]
    figure.legend(
        *axes.get_legend_handles_labels(), loc="lower right", ncols=len(LEVELS), frameon=False, fontsize=9,
        labelcolor=INK, handlelength=1.6, columnspacing=1.2, borderpad=0, bbox_to_anchor=(0.985, box.y1 + 0.3 / height),
    )  # fmt: skip


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=10, color=FAINT)


def _positive(points: Points) -> list[tuple[float, float]]:
    return [(step, value) for step, value in points if value > 0]


def _log(axes: Axes, values: Sequence[float]) -> None:
    axes.set_yscale("log")
    axes.set_ylim(min(values) / 1.6, max(values) * 2.6)
    axes.set_xlim(left=0)
    plain_numbers(axes.yaxis)
    axes.grid(axis="y", which="minor", color="#f1f3f4", linewidth=0.6)
    axes.tick_params(axis="y", which="minor", length=0, labelsize=7, labelcolor=SOFT)


def plain_numbers(axis: Any) -> None:
    """0.01, 1, 1,000 in place of powers of ten."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}" if value < 1e6 else f"{value:.0e}"))


def _line_legend(figure: Figure, height: float, runs: Sequence[Run]) -> None:
    from matplotlib.lines import Line2D

    names = {"student": "student", "baseline": "baseline: the same student without distillation"}
    handles = []
    for run in runs:
        look = LOOKS[run.role]
        style: dict[str, Any] = {"color": look.colour, "linestyle": look.dashes, "linewidth": 2.2}
        handles.append(Line2D([], [], label=names[run.role], **style))
    figure.legend(
        handles=handles, loc="upper right", ncols=len(handles), frameon=False, fontsize=9, labelcolor=INK,
        bbox_to_anchor=(0.99, 1 - 0.1 / height), handlelength=2.6,
    )  # fmt: skip
