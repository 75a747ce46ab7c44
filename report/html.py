"""Pieces of HTML. A plain string is text, and escaped wherever it is put; only Markup is taken as it is."""

import io
import re
from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from plumage.report.figures import INK

NUMBER = re.compile(r"[+−]?\d[\d.,e+-]*(%| s| of \d+| to [+−][\d.]+)?|–|none")


class Markup(str):
    """HTML that is safe to put into the page."""


def safe(content: object) -> Markup:
    return content if isinstance(content, Markup) else Markup(escape(str(content)))


def element(tag: str, *content: object, **attributes: str) -> Markup:
    """``class_`` is the attribute class."""
    given = "".join(f' {name.rstrip("_")}="{escape(value)}"' for name, value in attributes.items())
    return Markup(f"<{tag}{given}>{''.join(map(safe, content))}</{tag}>")


def section(title: str, *content: object) -> Markup:
    return element("section", element("h2", title), *content)


def table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> Markup:
    """Columns of numbers are set to the right."""
    numbers = [all(NUMBER.fullmatch(str(cell)) for cell in column) for column in zip(*rows, strict=True)]

    def line(tag: str, cells: Sequence[object]) -> Markup:
        return element(
            "tr",
            *(
                element(tag, cell, **({"class_": "number"} if number else {}))
                for cell, number in zip(cells, numbers, strict=True)
            ),
        )

    body = element("tbody", *(line("td", row) for row in rows))
    return element("div", element("table", element("thead", line("th", head)), body), class_="wide")


def fold(summary: str, *content: object) -> Markup:
    return element("details", element("summary", summary), *content)


def tiles(pairs: Iterable[tuple[str, object]]) -> Markup:
    return element(
        "dl", *(element("div", element("dt", name), element("dd", value)) for name, value in pairs), class_="tiles"
    )


def image(kind: str, content: bytes, alt: str) -> Markup:
    source = f"data:image/{kind};base64,{b64encode(content).decode()}"
    return Markup(f'<img src="{source}" alt="{escape(alt)}">')


def picture(pixels: np.ndarray, alt: str) -> Markup:
    """pixels: (side, side, 3) uint8."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=88)
    return image("jpeg", file.getvalue(), alt)


def drawing(figure: Figure, alt: str, caption: object = "") -> Markup:
    """Its text and axes follow the reader's light or dark scheme."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    scheme = f":root{{--ink:{INK}}}@media(prefers-color-scheme:dark){{:root{{--ink:#c8ccd0}}}}</style>"
    svg = file.getvalue().decode().replace(INK, "var(--ink)").replace("</style>", scheme, 1)
    return element("figure", image("svg+xml", svg.encode(), alt), element("figcaption", caption) if caption else "")


def page(title: str, *content: object) -> str:
    head = Markup(
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
    )
    body = element("body", element("main", *content))
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>{body}</html>\n'


STYLE = """
:root { color-scheme: light dark; --ink: #22262a; --soft: #646b73; --line: #dfe3e6; --paper: #fff; --tint: #f4f6f7;
  --mark: #0072b2; --warn: #b04a00 }
@media (prefers-color-scheme: dark) { :root { --ink: #dde1e4; --soft: #98a0a8; --line: #33393f; --paper: #16191c;
  --tint: #1f2428; --mark: #56b4e9; --warn: #e69f00 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1rem/1.55 system-ui, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif }
main { max-width: 1120px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem }
h1 { margin: 0; font-size: 1.9rem; font-weight: 650; line-height: 1.2; overflow-wrap: anywhere }
h2 { margin: 0 0 .8rem; font-size: 1.2rem; font-weight: 600 }
h3 { margin: 1.5rem 0 .5rem; font-size: 1rem; font-weight: 600 }
section { margin-top: 2.2rem; padding-top: 1.6rem; border-top: 1px solid var(--line) }
p { margin: .4rem 0; max-width: 46rem; overflow-wrap: anywhere }
.lead, figcaption, dt, .soft { color: var(--soft) }
.missing { color: var(--warn) }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(max(8.5rem, 21%), 1fr)); gap: .75rem;
  margin: 1.4rem 0 0 }
.tiles > div { background: var(--tint); border-radius: 8px; padding: .7rem .9rem }
dt { font-size: .8rem } dd { margin: 0; font-size: 1.3rem; font-weight: 600; font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere }
.wide { overflow-x: auto; margin: .6rem 0 }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums }
th, td { padding: .28rem 1.1rem .28rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line);
  max-width: 34rem; overflow-wrap: break-word }
th { color: var(--soft); font-weight: 500; white-space: nowrap }
td code, .number { white-space: nowrap } .number { text-align: right }
b { font-weight: 650 } b.changed { color: var(--mark) }
figure { margin: .4rem 0; min-width: 0 } figure img { width: 100%; max-width: 540px; height: auto; display: block }
figcaption { font-size: .85rem; max-width: 38rem }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); gap: .5rem 2rem;
  align-items: start }
.strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .9rem }
.strip figure { margin: 0; font-size: .8rem; line-height: 1.35; overflow-wrap: anywhere }
.strip img { border-radius: 6px; aspect-ratio: 1; margin-bottom: .25rem }
pre { background: var(--tint); border-radius: 8px; padding: .8rem 1rem; font-size: .85rem; white-space: pre-wrap;
  overflow-wrap: anywhere }
summary { cursor: pointer; color: var(--mark) }
@media print { :root { font-size: 11px } main { max-width: none; padding: 0 } section { margin-top: 1.2rem }
  figure, tr, .tiles > div, pre { break-inside: avoid } h2, h3 { break-after: avoid } .wide { overflow: visible }
  td { overflow-wrap: anywhere } }
"""
