"""Which detections count as right."""

import pytest

from client.scenes import Found, evenly, judged_panel, overlap

SEVEN, THREE = Found((0, 0, 10, 10), "7"), Found((20, 20, 40, 40), "3")


def verdicts(*found: Found) -> list[tuple[str, str]]:
    return [(mark.text[:1], mark.verdict) for mark in judged_panel([SEVEN, THREE], found).marks]


def test_a_box_is_right_once() -> None:
    double = verdicts(Found((0, 0, 10, 9), "7", 0.6), Found((0, 0, 10, 10), "7", 0.9))
    assert sorted(double) == [("", "missed"), ("7", "right"), ("7", "wrong")]


def test_the_class_must_agree() -> None:
    assert ("3", "wrong") in verdicts(Found((0, 0, 10, 10), "3", 0.9))


def test_half_an_overlap_is_enough_and_less_is_not() -> None:
    assert ("7", "right") in verdicts(Found((0, 0, 10, 5), "7", 0.9))
    assert ("7", "wrong") in verdicts(Found((0, 0, 10, 4.9), "7", 0.9))


def test_the_summary_counts() -> None:
    assert judged_panel([SEVEN, THREE], [SEVEN, Found((60, 60, 70, 70), "1", 0.8)]).summary == "1 of 2 found, 1 wrong"


@pytest.mark.parametrize(("count", "wanted", "chosen"), [(10, 3, [0, 3, 6]), (2, 5, [0, 1]), (0, 5, [])])
def test_images_are_spread_over_the_split(count: int, wanted: int, chosen: list[int]) -> None:
    assert evenly(count, wanted) == chosen


def test_overlap_of_apart_and_of_same() -> None:
    assert overlap(SEVEN.box, THREE.box) == 0.0
    assert overlap(SEVEN.box, SEVEN.box) == 1.0
