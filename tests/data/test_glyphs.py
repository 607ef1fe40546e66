"""The stroke templates in glyphs.json and the images that are drawn from them."""

import json
from pathlib import Path

import numpy as np
import torch

from vae_lightning.data import digits, glyphs, strokes


def test_every_digit_has_ways_of_writing():
    ways = glyphs.load_glyphs()
    assert len(ways) == 10
    for glyph in (glyph for variants in ways for glyph in variants):
        assert len(glyph.points) >= 4
        assert all(len(curve) >= 2 for curve in glyph.curves)
        assert all(0 <= y <= 100 for _, y in glyph.points)


def test_every_glyph_in_the_file_is_described():
    content = json.loads(glyphs.GLYPH_FILE.read_text())
    assert list(content) == list("0123456789")
    for glyph in (glyph for variants in content.values() for glyph in variants):
        assert set(glyph) == {"description", "share", "curves"}
        assert glyph["description"]


def test_curves_pass_through_the_ends_and_are_evenly_spaced():
    for glyph in (glyph for variants in glyphs.load_glyphs() for glyph in variants):
        weights = glyphs.curve_weights(glyph, spacing=0.5)
        torch.testing.assert_close(weights.sum(0), torch.ones_like(weights[0]))
        path = weights.T @ torch.tensor(glyph.points, dtype=torch.float64)
        assert path[0].tolist() == list(glyph.curves[0][0])
        torch.testing.assert_close(path[-1].tolist(), [float(c) for c in glyph.curves[-1][-1]])
        if len(glyph.curves) == 1:
            steps = (path[1:] - path[:-1]).norm(dim=1)
            assert steps.max() <= 0.5
            assert steps.min() > 0.9 * steps.max()


def test_drawn_images_are_those_of_earlier_versions():
    """Published numbers and cached images depend on it. Processors round differently."""
    images = strokes.render(strokes.draw_factors(1000, seed=0))[::40]
    path = Path(__file__).with_name("drawn_digits.npz")
    with np.load(path, allow_pickle=False) as earlier:
        difference = (images.int() - torch.from_numpy(earlier["images"]).int()).abs()
    assert difference.max() <= 1
    assert difference.float().mean() < 1e-3


def test_the_cache_is_renewed_when_code_or_data_change(tmp_path, monkeypatch):
    version = digits._drawing_version()
    assert glyphs.GLYPH_FILE in strokes.SOURCES
    for i, source in enumerate(strokes.SOURCES):
        changed = tmp_path / source.name
        changed.write_bytes(source.read_bytes() + b" ")
        sources = [*strokes.SOURCES]
        sources[i] = changed
        with monkeypatch.context() as patch:
            patch.setattr(strokes, "SOURCES", tuple(sources))
            assert digits._drawing_version() != version
    assert digits._drawing_version() == version
