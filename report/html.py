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
from plumage.report.figures import INK


def render(template: str, **values: object) -> str:
    """Return the page that the file ``template`` makes of ``values``."""
    return TEMPLATES.get_template(template).render(values) + "\n"


def jpeg(pixels: np.ndarray) -> str:
    """Return the data: URI of a picture, (height, width, 3) uint8."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=88)
    return data_uri("jpeg", file.getvalue())


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
TEMPLATES.filters.update(jpeg=jpeg, svg=svg, number=format)
