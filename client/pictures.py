"""The two pictures of a comparison: curves over epochs, and detections side by side.

Colours are from Okabe and Ito's palette, which stays apart under every common colour blindness; lines also differ in
dash, and boxes in line width and dash. Matplotlib is imported when a picture is drawn, never before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from client.scenes import Panel, Scene

INK = "#22282e"
FAINT = "#8a949e"
BLUE, VERMILION, ORANGE = "#0072b2", "#d55e00", "#e69f00"
DPI = 150


@dataclass(frozen=True)
class Look:
    colour: str
    dashes: str | tuple[float, tuple[float, ...]] = "-"


LOOKS = {
    "teacher": Look("#5b6670", (0, (1.2, 1.2))),
    "baseline": Look(ORANGE, (0, (5, 1.6))),
    "student": Look(BLUE),
}
ORDER = ("classification", "bbox_regression", "bbox_ctrness", "high", "medium", "low")
SPARE = [Look("#009e73", (0, (6, 1, 1, 1))), Look("#cc79a7", (0, (3, 1))), Look("#56b4e9", (0, (2, 2)))]


@dataclass(frozen=True)
class Curves:
    """One run. `losses` maps a term to (epoch, value) points in order, `ap` likewise; epochs are fractions of a run."""

    name: str
    losses: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    ap: list[tuple[float, float]] = field(default_factory=list)


def draw_curves(runs: Sequence[Curves], path: Path, *, title: str, note: str = "") -> Path:
    """mAP in percent over epochs, then one small panel per loss term; every axis of values starts at zero."""
    figure = new_figure(13.2, 6.2)
    terms = _terms(runs)
    columns = max(1, (len(terms) + 1) // 2)
    heading(figure, title, note)
    # The space between the two grids holds the names at the ends of the mAP curves.
    left = figure.add_gridspec(1, 1, left=0.055, right=0.37, top=0.83, bottom=0.09)
    right = figure.add_gridspec(2, columns, left=0.5, right=0.985, top=0.83, bottom=0.09, wspace=0.34, hspace=0.36)
    _draw_ap(figure.add_subplot(left[0, 0]), runs)
    for index, term in enumerate(terms):
        _draw_term(figure.add_subplot(right[index // columns, index % columns]), runs, term)
    return save(figure, path)


def draw_detections(scenes: Sequence[Scene], path: Path, *, title: str, note: str = "") -> Path:
    """One row per image; ground truth first, then one column per model."""
    columns = ["ground truth", *scenes[0].found]
    wide = max(1.0, max(scene.width / scene.height for scene in scenes))
    cell = 2.15
    width, height = 0.5 + len(columns) * cell * wide, 1.55 + len(scenes) * (cell + 0.22)
    figure = new_figure(width, height)
    grid = figure.add_gridspec(
        len(scenes), len(columns), left=0.02, right=0.98, top=1 - 0.98 / height, bottom=0.62 / height,
        wspace=0.04, hspace=0.12,
    )  # fmt: skip
    heading(figure, title, note)
    for row, scene in enumerate(scenes):
        for column, panel in enumerate([scene.truth, *scene.found.values()]):
            axes = figure.add_subplot(grid[row, column])
            _draw_panel(axes, scene, panel)
            if row == 0:
                axes.set_title(columns[column], fontsize=10.5, color=INK, fontweight="bold", pad=5)
    _box_legend(figure, height)
    return save(figure, path)


def new_figure(width: float, height: float) -> Figure:
    """Of so many inches, without a window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def heading(figure: Figure, title: str, note: str) -> None:
    """A title and a line under it, at the top left."""
    height = figure.get_size_inches()[1]
    figure.text(0.02, 1 - 0.14 / height, title, fontsize=14, fontweight="bold", color=INK, va="top")
    figure.text(0.02, 1 - 0.43 / height, note, fontsize=9, color="#55606a", va="top")


def save(figure: Figure, path: Path) -> Path:
    """As PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    figure.savefig(part, format="png")
    part.replace(path)
    return path


def _look(name: str, runs: Sequence[Curves]) -> Look:
    spare = [run.name for run in runs if run.name not in LOOKS]
    return LOOKS[name] if name in LOOKS else SPARE[spare.index(name) % len(SPARE)]


def _terms(runs: Sequence[Curves]) -> list[str]:
    """Loss terms: the task's first, then the distillation's; each in the order of ORDER, then of the runs."""
    terms = list(dict.fromkeys(term for run in runs for term in run.losses))
    rank = {name: index for index, name in enumerate(ORDER)}
    return sorted(terms, key=lambda term: ("distill" in term, rank.get(term.rpartition("/")[2], len(ORDER))))


def plain_axes(axes: Axes) -> None:
    """Without a box around it, with faint lines across."""
    from matplotlib.ticker import MaxNLocator

    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors="#55606a", labelsize=8, length=3)
    axes.grid(axis="y", color="#e6e9ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _epochs(runs: Sequence[Curves]) -> float:
    points = [point for run in runs for series in (run.ap, *run.losses.values()) for point in series]
    return max((epoch for epoch, _ in points), default=1.0)


def _draw_ap(axes: Axes, runs: Sequence[Curves]) -> None:
    plain_axes(axes)
    ends = [(run, run.ap[-1][0], 100 * run.ap[-1][1]) for run in runs if run.ap]
    top = max((100 * value for run in runs for _, value in run.ap), default=0.0)
    axes.set_ylim(0, max(5.0, min(100.0, top * 1.12)))
    axes.set_xlim(0, _epochs(runs) * 1.02)
    for run in runs:
        if run.ap:
            look = _look(run.name, runs)
            x, y = zip(*run.ap, strict=True)
            percent = [100 * value for value in y]
            axes.plot(x, percent, color=look.colour, linestyle=look.dashes, linewidth=2.2, marker="o", markersize=3.6)
    label_ends(axes, [(epoch, value, f" {run.name} {value:.1f}", _look(run.name, runs)) for run, epoch, value in ends])
    axes.set_title("mAP on the validation images", loc="left", fontsize=11, color=INK, fontweight="bold")
    axes.set_xlabel("epoch", fontsize=9, color="#55606a")
    axes.set_ylabel("AP at IoU .50:.95, percent", fontsize=9, color="#55606a")


def label_ends(axes: Axes, ends: list[tuple[float, float, str, Look]]) -> None:
    """A label beside the end of each line, pushed apart where they would meet."""
    low, high = axes.get_ylim()
    gap, floor, high_x = (high - low) * 0.052, low, axes.get_xlim()[1]
    for epoch, value, text, look in sorted(ends, key=lambda end: end[1]):
        y = max(value, floor + gap if floor > low else low + gap / 2)
        floor = y
        axes.plot([epoch, high_x], [value, y], color=look.colour, linewidth=0.7, alpha=0.6, clip_on=False)
        axes.annotate(
            text, (epoch, value), xytext=(high_x, y), textcoords="data", va="center", ha="left",
            fontsize=9.5, color=look.colour, fontweight="bold", annotation_clip=False,
        )  # fmt: skip


def _draw_term(axes: Axes, runs: Sequence[Curves], term: str) -> None:
    plain_axes(axes)
    top = 0.0
    for run in runs:
        points = run.losses.get(term, [])
        if not points:
            continue
        look = _look(run.name, runs)
        means = epoch_means(points)
        axes.plot(*zip(*points, strict=True), color=look.colour, linewidth=0.8, alpha=0.45)
        dot = "o" if len(means) < 4 else ""
        axes.plot(
            *zip(*means, strict=True),
            color=look.colour,
            linestyle=look.dashes,
            linewidth=1.8,
            marker=dot,
            markersize=3.2,
        )
        top = max(top, usual_top([value for _, value in points]), *(value for _, value in means))
    axes.set_ylim(0, top * 1.15 or 1.0)
    axes.set_xlim(0, _epochs(runs) * 1.02)
    axes.set_title(term, loc="left", fontsize=9.5, color=INK)
    axes.set_xlabel("epoch", fontsize=8, color="#55606a", labelpad=1)


def epoch_means(points: Sequence[tuple[float, float]], length: float = 1.0) -> list[tuple[float, float]]:
    """The mean of each epoch's points, placed in the middle of what was logged of it; an epoch is `length` long."""
    groups: dict[int, list[tuple[float, float]]] = {}
    for place, value in points:
        # A point at epoch 2.0 closes the second epoch, so it belongs to 1, not to 2.
        groups.setdefault(max(0, -int(-place // length) - 1), []).append((place, value))
    return [(_mean([e for e, _ in group]), _mean([v for _, v in group])) for group in groups.values()]


def usual_top(values: Sequence[float]) -> float:
    """The highest value but for the top fiftieth: a spike in the first steps must not flatten all that follows."""
    return sorted(values)[-(-(len(values) - 1) * 49 // 50)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


BOX_STYLES: dict[str, dict[str, Any]] = {
    "truth": {"edgecolor": "#ffffff", "linewidth": 1.6, "linestyle": "-"},
    "right": {"edgecolor": "#56b4e9", "linewidth": 1.6, "linestyle": "-"},
    "wrong": {"edgecolor": "#ff7a1a", "linewidth": 2.0, "linestyle": (0, (4, 1.5))},
    "missed": {"edgecolor": "#f0e442", "linewidth": 1.5, "linestyle": (0, (1, 1.2))},
}
BOX_MEANING = {
    "truth": "ground truth",
    "right": "right: class agrees, IoU at least .5",
    "wrong": "wrong class, place, or double",
    "missed": "object missed",
}


def _draw_panel(axes: Axes, scene: Scene, panel: Panel) -> None:
    axes.imshow(scene.pixels, interpolation="nearest", extent=(0, scene.width, scene.height, 0))
    axes.set_xlim(0, scene.width)
    axes.set_ylim(scene.height, 0)
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)
    for mark in panel.marks:
        _draw_mark(axes, scene, mark.box, mark.text, mark.verdict)
    axes.set_xlabel(panel.summary, fontsize=8, color="#55606a", labelpad=3)


def _draw_mark(axes: Axes, scene: Scene, box: tuple[float, float, float, float], text: str, verdict: str) -> None:
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import Normal, Stroke

    left, top, right, bottom = box
    style = BOX_STYLES[verdict]
    under = Stroke(linewidth=style["linewidth"] + 1.6, foreground="#000000", alpha=0.55)
    outline = Rectangle((left, top), right - left, bottom - top, fill=False, path_effects=[under, Normal()], **style)
    axes.add_patch(outline)
    if text:
        inside = top < scene.height * 0.08
        axes.text(
            max(left, 0) + scene.width * 0.008, top if not inside else bottom, text, fontsize=7.2, color="#101418",
            va="bottom" if not inside else "top", ha="left", clip_on=True,
            bbox={"facecolor": style["edgecolor"], "edgecolor": "none", "pad": 0.9, "alpha": 0.92},
        )  # fmt: skip


def _box_legend(figure: Figure, height: float) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import Normal, Stroke

    under = [Stroke(linewidth=3.6, foreground="#000000", alpha=0.55), Normal()]
    handles = [
        Line2D([], [], color=style["edgecolor"], linewidth=2, linestyle=style["linestyle"], path_effects=under)
        for style in BOX_STYLES.values()
    ]
    figure.legend(
        handles, list(BOX_MEANING.values()), loc="lower center", ncols=len(handles), frameon=False, fontsize=8.5,
        bbox_to_anchor=(0.5, 0.06 / height), labelcolor=INK, handlelength=2.4, columnspacing=1.6,
    )  # fmt: skip
