"""Figures of the report."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from sctok.evaluation.report.plots import (
    GRID,
    INK,
    centroid_map,
    inertia_plot,
    inline_svg,
    principal_plane,
    quality_plot,
    ratings_plot,
    save_plot,
    spectrogram_plot,
    usage_plot,
)
from sctok.evaluation.report.tables import CodecScores, MetricScore
from sctok.formats.codebooks import Segment


def score(mean):
    return MetricScore(mean, None, None, 1, 0)


def row(codec, spec, kbps, mean):
    return CodecScores(codec, spec, {"kbps": score(kbps), "visqol": MetricScore(mean, mean - 0.1, mean + 0.1, 3, 0)})


ROWS = [row("opus-6", "opus:6", 6.0, 3.0), row("opus-12", "opus:12", 12.0, 4.0), row("mini", "mini", 0.6, 2.0)]
VISQOL = {"name": "visqol", "unit": "MOS", "better": "higher"}


CENTROIDS = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
FIGURES = {
    "quality": lambda: quality_plot(ROWS, [VISQOL], "quality", "Quality"),
    "inertia": lambda: inertia_plot({"speech-4-r50": [4.0, 2.0, 1.5]}),
    "usage": lambda: usage_plot({"speech-4-r50": np.array([5, 3, 0, 9])}),
    "map": lambda: centroid_map("m", CENTROIDS, (Segment("speech", 0, 2), Segment("music", 2, 6)), "map"),
    "ratings": lambda: ratings_plot([{"label": "opus", "mean": 50.0, "low": None, "high": None}], "ratings", "Ratings"),
    "spectrograms": lambda: spectrogram_plot({"a": np.zeros((50, 96), np.float32)}, 0.5, {1000.0: 0.33}, "s", "Clip"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_can_be_saved_and_embedded(name, tmp_path):
    plot = FIGURES[name]()
    png, svg = save_plot(plot, tmp_path)
    with Image.open(png) as image:
        assert min(image.size) > 100
    ET.parse(svg)
    inline = inline_svg(plot)
    ET.fromstring(inline)
    assert plot.title in inline
    assert "currentColor" in inline
    assert INK not in inline
    assert GRID not in inline


def test_ids_of_two_figures_differ():
    one, other = inertia_plot({"a": [2.0, 1.0]}), usage_plot({"a": np.array([1, 2])})
    ids = [re.findall(r'\bid="([^"]+)"', inline_svg(plot)) for plot in (one, other)]
    assert ids[0]
    assert not set(ids[0]) & set(ids[1])


def test_references_inside_a_figure_have_targets():
    svg = inline_svg(inertia_plot({"a": [2.0, 1.0]}))
    ids = set(re.findall(r'\bid="([^"]+)"', svg))
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    assert used
    assert used <= ids


def test_the_codecs_of_a_family_are_joined_by_bit_rate():
    axes = quality_plot(ROWS[::-1], [VISQOL], "quality", "Quality").figure.axes[0]
    lines = {line.get_label(): list(line.get_xdata()) for line in (c.lines[0] for c in axes.containers)} or {}
    assert [6.0, 12.0] in lines.values()


def test_anchors_and_codecs_without_scores_or_rates_are_not_plotted():
    silent = CodecScores("dir", "dir:x", {"visqol": score(3.0)})
    failed = CodecScores("opus-6", "opus:6", {"kbps": score(6.0), "visqol": score(None)})
    assert quality_plot([row("original", "original", 256.0, 5.0), silent, failed], [VISQOL], "q", "Q") is None


def test_without_data_there_is_no_figure():
    assert inertia_plot({}) is None
    assert usage_plot({"a": np.zeros(3, np.int64)}) is None
    assert ratings_plot([], "r", "R") is None


def test_the_principal_plane_preserves_distances_of_points_in_a_plane():
    rng = np.random.default_rng(1)
    plane = rng.standard_normal((40, 2)) * [3.0, 1.0]
    basis, _ = np.linalg.qr(rng.standard_normal((7, 2)))
    positions, shares = principal_plane((plane @ basis.T + 5).astype(np.float32))
    np.testing.assert_allclose(
        np.linalg.norm(positions[:, None] - positions, axis=2),
        np.linalg.norm(plane[:, None] - plane, axis=2),
        atol=1e-4,
    )
    np.testing.assert_allclose(shares.sum(), 1, atol=1e-6)
    assert shares[0] > shares[1]


def test_the_principal_plane_of_equal_points_is_zero():
    positions, shares = principal_plane(np.ones((3, 1), np.float32))
    assert not positions.any()
    assert not shares.any()
