"""A picture of where a student is taught: key and weak points, regions and scores of one image, level by level."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log2
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tid_core.distillers.areas import REGIONS, Areas
from tid_core.methods import TidSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with every common kind of colour blindness, and in greys.
KEY, WEAK, TRUTH = "#56b4e9", "#e69f00", "#00e5a0"
REGION_COLOURS = dict(zip(REGIONS, ("#d55e00", "#f0e442", "#0072b2"), strict=True))
REGION_OPACITY = dict(zip(REGIONS, (0.7, 0.6, 0.35), strict=True))
OPACITY = 0.65
PANEL_INCHES = 2.1
MAX_BOXES_NAMED = 8


@dataclass(frozen=True)
class _Panel:
    """One image in its batch: what every panel is drawn on."""

    image_HW3: Any
    size: tuple[int, int]
    """(height, width) of the image in pixels of the batch."""
    target: Mapping[str, Tensor]
    classes: Sequence[str]


def draw_maps(
    image_3HW: Tensor,
    areas: Areas,
    target: Mapping[str, Tensor],
    path: Path,
    *,
    size: tuple[int, int],
    tid: TidSpec | None = None,
    index: int = 0,
    classes: Sequence[str] = (),
    title: str = "",
    note: str = "",
) -> None:
    """Write a PNG: a row per level; columns input, key, weak, regions, and the scores of teacher and student.

    Args:
        image_3HW: as loaded, uint8 or float in 0..1, at any resolution.
        areas: of the batch that holds the image.
        target: `boxes` (M, 4) in pixels of the batch, `labels` (M,), optionally `iscrowd` (M,; drawn dashed).
        path: the folder must exist.
        size: (height, width) the image had in the batch, without padding (`ImageList.image_sizes`).
        tid: what the areas were found with. It sets the scale of the scores, so that pictures can be compared.
        index: its place in the batch.
        classes: names for the labels; without them boxes are not named.
        note: a smaller line under the title.
    """
    # Imported here: training without pictures needs no matplotlib, and Agg needs no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panel = _Panel(_as_rows(image_3HW), size, target, classes)
    rows = len(areas.grid)
    width = PANEL_INCHES * max(min(size[1] / size[0], 2.0), 0.5)
    figure = Figure(figsize=(6 * width + 1.6, rows * PANEL_INCHES + 1.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid: Any = figure.subplots(rows, 6, squeeze=False)
    tid = tid or TidSpec()
    layers = _layers(areas, index)
    shown = None
    for row in range(rows):
        level = {name: maps[row] for name, maps in layers.items()}
        shown = _draw_row(grid[row], panel, level, areas, row, best_score(tid))
    _decorate(figure, grid, title or "Where the student listens to its teacher", note)
    _score_bar(figure, grid, shown, tid)
    figure.savefig(path)


def _layers(areas: Areas, index: int) -> dict[str, list[Tensor]]:
    """Per name and level, (H, W): masks as bool, regions as their number, scores; NaN outside of the image."""
    valid_P = areas.valid_NP[index]
    region_P = areas.regions_RNP[:, index].float().argmax(dim=0).float()
    maps = {
        "key": areas.key_NP[index].float(),
        "weak": areas.weak_NP[index].float(),
        "regions": region_P.masked_fill(~valid_P, torch.nan),
        "teacher": areas.score_teacher_NP[index].masked_fill(~valid_P, torch.nan),
        "student": areas.score_student_NP[index].masked_fill(~valid_P, torch.nan),
    }
    return {name: areas.split(map_P.cpu()) for name, map_P in maps.items()}


def best_score(tid: TidSpec) -> float:
    """The highest score that a point can have."""
    of_class = max(tid.cls_right, tid.cls_unsure, tid.cls_wrong) if tid.cls_score != "prob" else 1.0
    of_box = max(tid.score_pos, tid.score_mid, tid.score_neg)
    return {"both": of_class * of_box, "cls": of_class, "reg": of_box}[tid.tasks]


def _draw_row(axes: Any, panel: _Panel, layers: Mapping[str, Tensor], areas: Areas, level: int, top: float) -> Any:
    """One level; returns a score image, for the colour bar."""
    from matplotlib.colors import PowerNorm

    for ax in axes:
        _backdrop(ax, panel)
    # Cells part the padded batch as the grid does, and so a coarse level's may be smaller than its stride.
    (rows, columns), stride = areas.grid[0], areas.strides[0]
    cells = {"extent": (0, columns * stride, rows * stride, 0), "interpolation": "nearest"}
    _boxes(axes[0], panel, named=level == 0)
    for ax, name, colour in ((axes[1], "key", KEY), (axes[2], "weak", WEAK)):
        mask_HW = layers[name].masked_fill(layers[name] == 0, torch.nan)
        ax.imshow(mask_HW.numpy(), cmap=_colours({name: colour}, {name: OPACITY}), **cells)
        _note(ax, f"{_share(layers[name] == 1, layers):.0f} % of points")
    axes[3].imshow(
        layers["regions"].numpy(), cmap=_colours(REGION_COLOURS, REGION_OPACITY), vmin=0, vmax=len(REGIONS) - 1, **cells
    )
    shares = [f"{name} {_share(layers['regions'] == r, layers):.0f}" for r, name in enumerate(REGIONS)]
    _note(axes[3], ", ".join(shares) + " %")
    # The root keeps the low scores apart: 0.16 and 0.8 would look alike beside 4.
    norm = PowerNorm(0.5, vmin=0, vmax=top)
    for ax, name in ((axes[4], "teacher"), (axes[5], "student")):
        shown = ax.imshow(layers[name].numpy(), cmap="cividis", norm=norm, alpha=0.85, **cells)
        _boxes(ax, panel, named=False)
        _note(ax, f"mean {float(layers[name].nanmean()):.2f}")
    for ax in axes:
        ax.set_xlim(0, panel.size[1])
        ax.set_ylim(panel.size[0], 0)
    height, width = areas.grid[level]
    stride = areas.strides[level]
    axes[0].set_ylabel(f"P{log2(stride):.0f}, stride {stride}\n{height} x {width} points", fontsize=8)
    return shown


def _colours(colours: Mapping[str, str], opacity: Mapping[str, float]) -> Any:
    from matplotlib.colors import ListedColormap, to_rgba

    return ListedColormap([to_rgba(colour, opacity[name]) for name, colour in colours.items()])


def _share(mask_HW: Tensor, layers: Mapping[str, Tensor]) -> float:
    """Percentage of the points inside the image."""
    return 100 * float(mask_HW.sum()) / max(int(layers["regions"].isfinite().sum()), 1)


def _note(ax: "Axes", text: str) -> None:
    ax.set_xlabel(text, fontsize=7, labelpad=2)


def _as_rows(image_3HW: Tensor) -> Any:
    image = image_3HW.detach().cpu()
    image = image if image.is_floating_point() else image.float() / 255
    return image.clamp(0, 1).permute(1, 2, 0).numpy()


def _backdrop(ax: "Axes", panel: _Panel) -> None:
    height, width = panel.size
    ax.imshow(panel.image_HW3, extent=(0, width, height, 0))
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(False)


def _boxes(ax: "Axes", panel: _Panel, *, named: bool) -> None:
    from matplotlib.patches import Rectangle

    boxes = panel.target["boxes"].tolist()
    labels = panel.target["labels"].tolist()
    crowd = panel.target["iscrowd"].tolist() if "iscrowd" in panel.target else [False] * len(boxes)
    for place, ((x1, y1, x2, y2), label, is_crowd) in enumerate(zip(boxes, labels, crowd, strict=True)):
        style = "--" if is_crowd else "-"
        ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=TRUTH, linewidth=1.1, linestyle=style))
        if named and panel.classes and place < MAX_BOXES_NAMED:
            tag = {"facecolor": TRUTH, "edgecolor": "none", "pad": 0.8}
            ax.text(x1, y1, panel.classes[label], fontsize=6, va="bottom", color="black", bbox=tag, clip_on=True)


def _decorate(figure: "Figure", grid: Any, title: str, note: str) -> None:
    from matplotlib.patches import Patch

    columns = ("input, ground truth", "key", "weak", "regions", "score of the teacher", "score of the student")
    for ax, name in zip(grid[0], columns, strict=True):
        ax.set_title(name, fontsize=9)
    meanings = {
        "key: what matters": KEY,
        "weak: where the student lags": WEAK,
        **{f"{region} value": colour for region, colour in REGION_COLOURS.items()},
    }
    patches = [Patch(facecolor=colour, label=name) for name, colour in meanings.items()]
    patches.append(Patch(facecolor="none", edgecolor=TRUTH, label="ground truth"))
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=8, frameon=False)
    figure.suptitle(f"{title}\n{note}" if note else title, fontsize=11)


def _score_bar(figure: "Figure", grid: Any, scores: Any, tid: TidSpec) -> None:
    """The scale, with a line at the score above which a point is key."""
    top = best_score(tid)
    bar = figure.colorbar(scores, ax=list(grid[:, 4:].flat), shrink=0.8, pad=0.01)
    bar.set_ticks([tick for tick in (0, 0.2, 0.5, 1, 2, 3, 4, 6, 8) if tick <= top])
    bar.ax.tick_params(labelsize=7)
    bar.ax.minorticks_off()
    factors = {"both": "class score x box score", "cls": "class score", "reg": "box score"}[tid.tasks]
    if 0 < tid.tau_key < top:
        bar.ax.axhline(tid.tau_key, color="white", linewidth=1.6)
    bar.set_label(f"{factors}; key above {tid.tau_key:g} (line)", fontsize=8)
