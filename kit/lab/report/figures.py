"""The pictures of an executed notebook, as HTML that needs nothing else."""

from __future__ import annotations

import html
import re
from typing import Any


def figures(notebook: Any) -> list[str]:
    """Return every picture in a notebook's outputs, in order: inline SVG, or an image with its bytes in it."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/svg+xml" in data:
                found.append(inline_svg("".join(data["image/svg+xml"])))
            elif "image/png" in data:
                label = html.escape("".join(data.get("text/plain", "")), quote=True)
                encoded = "".join(data["image/png"]).replace("\n", "")
                found.append(f'<img class="paper" alt="{label}" src="data:image/png;base64,{encoded}">')
    return found


def inline_svg(svg: str, prefix: str = "") -> str:
    """Return an SVG as an element of a page: no prologue, no fixed size, its ids its own.

    Ids are global in a page, and two pictures use the same ones: a prefix keeps them apart. A picture that does not
    follow the page's colours gets white paper (class ``paper``).
    """
    svg = svg[svg.index("<svg") :]
    head, rest = svg[: svg.index(">") + 1], svg[svg.index(">") + 1 :]
    if "viewBox" not in head:
        width, height = (re.search(rf'\b{side}="([\d.]+)', head) for side in ("width", "height"))
        if width and height:
            head = head.replace("<svg", f'<svg viewBox="0 0 {width[1]} {height[1]}"', 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    if 'class="' not in head:
        head = head.replace("<svg", '<svg class="paper"', 1)
    if prefix:
        rest = re.sub(r'\bid="', f'id="{prefix}', rest)
        rest = re.sub(r"url\(#", f"url(#{prefix}", rest)
        rest = re.sub(r'href="#', f'href="#{prefix}', rest)
    return _without("script", _without("metadata", head + rest))


def _without(tag: str, markup: str) -> str:
    """Return the markup without the elements of a tag."""
    kept, begin = [], -1
    position = 0
    for match in re.finditer(rf"(<{tag}\b)|</{tag}\s{{0,99}}>", markup, re.IGNORECASE):
        if match.group(1) is not None:
            begin = match.start() if begin < 0 else begin
        elif begin >= 0:
            kept.append(markup[position:begin])
            position, begin = match.end(), -1
    return "".join([*kept, markup[position:]])
