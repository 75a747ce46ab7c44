"""A map laid over its picture, by hand."""

import io
from base64 import b64decode

import numpy as np
import pytest
from PIL import Image

from plumage.inference.heat import COLOURS, COVER, laid_over
from plumage.report.html import MOST_BYTES, heat, jpeg

GREY = np.full((8, 8, 3), 100, np.uint8)


@pytest.mark.parametrize("evidence", [[[0.0]], [[-3.0]], [[-1e30, 0.0], [-1.0, -2.0]]])
def test_where_nothing_speaks_for_the_class_all_is_dark(evidence):
    expected = np.rint(COVER * COLOURS[0] + (1 - COVER) * 100)
    assert np.abs(laid_over(GREY, np.array(evidence, np.float32)) - expected).max() <= 1


@pytest.mark.parametrize("scale", [1e-37, 1, 1e38])
def test_the_most_evidence_is_yellow_however_much_it_is(scale):
    drawn = laid_over(GREY, np.full((2, 2), scale, np.float32)).astype(float)
    assert np.abs(drawn - np.rint(COVER * COLOURS[2] + (1 - COVER) * 100)).max() <= 1


def test_colours_lie_where_the_evidence_is_and_grow_lighter_with_it():
    evidence = np.linspace(0, 1, 8, dtype=np.float32)[None].repeat(8, 0)
    drawn = laid_over(GREY, evidence)
    assert (drawn.shape, drawn.dtype) == ((8, 8, 3), np.uint8)
    light = drawn @ [0.299, 0.587, 0.114]
    assert (np.diff(light, axis=1) > 5).all()  # so that neither hue nor colour is needed to tell
    assert np.ptp(light, axis=0).max() < 1
    below = laid_over(GREY, evidence.T) @ [0.299, 0.587, 0.114]
    assert (np.diff(below, axis=0) > 5).all()


def test_a_picture_in_the_page_is_no_larger_than_it_must_be():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (224, 224, 3), np.uint8)
    for uri in (jpeg(noise), heat(noise, rng.normal(size=(7, 7)).astype(np.float32))):
        kind, _, content = uri.partition(",")
        assert kind == "data:image/jpeg;base64"
        assert len(b64decode(content)) <= MOST_BYTES
    smooth = np.arange(224, dtype=np.uint8)[:, None, None].repeat(224, 1).repeat(3, 2)
    shown = np.asarray(Image.open(io.BytesIO(b64decode(jpeg(smooth).partition(",")[2]))))
    assert np.abs(shown.astype(int) - smooth).max() <= 2  # what is plain keeps its quality
