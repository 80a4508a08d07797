"""The picture of the areas, read back pixel by pixel where it must say something."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tid_core.distillers.areas import find_areas
from tid_core.maps import best_score, draw_maps
from tid_core.methods import TidSpec

VERMILLION, BLUE = (0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2)


def _count(path: Path, colour: tuple[int, int, int], opacity: float) -> int:
    """Pixels that are `colour` over a white image."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    mixed = [opacity * c + (1 - opacity) * 255 for c in colour]
    return int((np.abs(pixels - mixed) <= 3).all(-1).sum())


def _draw(scene: Any, path: Path, *, index: int) -> None:
    areas = find_areas(scene.student, scene.teacher, scene.targets, TidSpec())
    image = torch.full((3, 90, 75), 255, dtype=torch.uint8)
    draw_maps(image, areas, scene.targets[index], path, size=(48, 40), index=index, classes=["a", "b", "c"], title="x")


def test_the_regions_are_in_the_picture(make_scene: Callable[..., Any], tmp_path: Path) -> None:
    """Image 0 has high-value points; image 1 has no ground truth and is all low."""
    scene = make_scene(seed=1)
    _draw(scene, tmp_path / "some.png", index=0)
    _draw(scene, tmp_path / "none.png", index=1)
    high = [_count(tmp_path / f"{name}.png", VERMILLION, 0.7) for name in ("some", "none")]
    low = [_count(tmp_path / f"{name}.png", BLUE, 0.35) for name in ("some", "none")]
    assert high[0] > 500
    assert high[1] == 0
    assert low[1] > 2 * low[0] > 0


def test_matplotlib_is_imported_only_to_draw() -> None:
    program = "import sys, tid_core.maps; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("settings", "best"),
    [({}, 4), ({"tasks": "reg"}, 2), ({"tasks": "cls", "cls_right": 3}, 3), ({"cls_score": "prob"}, 2)],
)
def test_the_scale_of_scores_is_that_of_the_settings(settings: dict[str, Any], best: float) -> None:
    """Of this epoch and the next one alike, so that their pictures can be compared."""
    assert best_score(TidSpec(**settings)) == best


def test_a_note_has_room_of_its_own(make_scene: Callable[..., Any], tmp_path: Path) -> None:
    scene = make_scene(seed=1)
    areas = find_areas(scene.student, scene.teacher, scene.targets, TidSpec())
    image = torch.zeros(3, 90, 75)
    for name, note in (("plain", ""), ("noted", "by default settings")):
        draw_maps(image, areas, scene.targets[0], tmp_path / f"{name}.png", size=(48, 40), title="x", note=note)
    plain, noted = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("L")) for name in ("plain", "noted"))
    inked = [int((pixels[:50] < 128).any(1).sum()) for pixels in (plain, noted)]
    assert inked[1] > inked[0]
