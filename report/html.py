"""The templates, which escape all text, and pictures and figures as data: URIs, so that a page needs no other file."""

import io
from base64 import b64encode
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from plumage.errors import visible
from plumage.inference.heat import laid_over
from plumage.report.style import INK

QUALITIES, MOST_BYTES = (88, 75, 60, 45, 30, 15), 22_000  # so that a page of some 100 pictures stays below 4 MB


def render(template: str, **values: object) -> str:
    """Return the page that the file ``template`` makes of ``values``."""
    return TEMPLATES.get_template(template).render(values) + "\n"


def jpeg(pixels: np.ndarray) -> str:
    """Return the data: URI of a picture, (height, width, 3) uint8: the coarser, the more detail it has."""
    for quality in QUALITIES:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        if file.tell() <= MOST_BYTES:
            break
    return data_uri("jpeg", file.getvalue())


def heat(pixels: np.ndarray, evidence: np.ndarray) -> str:
    """Return the data: URI of a picture under its class activation map, (h, w) float32."""
    return jpeg(laid_over(pixels, evidence))


def svg(figure: Figure) -> str:
    """Return the data: URI of a figure whose text and axes follow the reader's light or dark colour scheme."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    scheme = f":root{{--ink:{INK}}}@media(prefers-color-scheme:dark){{:root{{--ink:#c8ccd0}}}}</style>"
    text = file.getvalue().decode().replace(INK, "var(--ink)").replace("</style>", scheme, 1)
    return data_uri("svg+xml", text.encode())


def data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{b64encode(content).decode()}"


def shown(value: object) -> object:
    """Return what the page says of ``value``: what no macro has made may be a name of anything."""
    return value if isinstance(value, Markup) else visible(str(value), keep="\n")


TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    finalize=shown,
)
TEMPLATES.filters.update(jpeg=jpeg, heat=heat, svg=svg, number=format)
