"""A class activation map as people see it: laid over the picture that it is of."""

import numpy as np
from PIL import Image

# From no evidence to the most: dark blue, grey, yellow, whose lightness rises, so that colour-blind readers, and those
# of a print in grey, tell them apart.
COLOURS = np.array([(0, 34, 78), (124, 123, 120), (254, 232, 56)], np.float32)
RGB_TO_GREY = np.array([0.299, 0.587, 0.114], np.float32)
COVER = 0.55


def laid_over(pixels: np.ndarray, evidence: np.ndarray) -> np.ndarray:
    """Return a picture, (s, s, 3) uint8, in grey under its map's colours.

    evidence: (h, w) float32, enlarged smoothly. What is below 0, which speaks against the class, counts as none; the
    most that there is is yellow, however much it is.
    """
    positive = np.maximum(evidence, 0)
    share = positive / max(float(positive.max()), np.finfo(np.float32).tiny)
    height, width = pixels.shape[:2]
    smooth = np.asarray(Image.fromarray(share.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC))
    at = smooth.clip(0, 1)
    colours = np.stack([np.interp(at, (0, 0.5, 1), channel) for channel in COLOURS.T], axis=-1)
    grey = (pixels @ RGB_TO_GREY)[..., None]
    return np.rint(COVER * colours + (1 - COVER) * grey).astype(np.uint8)
