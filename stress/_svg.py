"""A small writer of SVG: shapes and text on a card that is readable on light and on dark pages.

Owns colours, fonts and the measure of text. Guarantees that the same calls write the same bytes, and that no text is
wider than the room it was given, with whatever usual font the reader has: widths are estimated on the wide side, and a
text that does not fit raises `Overflow` where it is drawn. Colours are those of Okabe and Ito as far as they are
readable; nothing is said by colour alone.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

MONO = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono','Liberation Mono',monospace"
SANS = "-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,'DejaVu Sans','Liberation Sans',sans-serif"

#: class: (CSS property, light, dark)
COLOURS = {
    "card": [("fill", "#ffffff", "#0d1117"), ("stroke", "#d0d7de", "#3d444d")],
    "box": [("fill", "#f6f8fa", "#151b23"), ("stroke", "#d0d7de", "#3d444d")],
    "line": [("stroke", "#b6bec7", "#4d5661")],
    "ink": [("fill", "#1f2328", "#f0f6fc")],
    "soft": [("fill", "#59636e", "#9aa4af")],
    "idle": [("fill", "#dfe3e8", "#2d343c")],
    "bar0": [("fill", "#0072b2", "#3f9fe0")],
    "bar1": [("fill", "#e69f00", "#e8a61c")],
    "edge0": [("stroke", "#0072b2", "#3f9fe0")],
    "edge1": [("stroke", "#c77f00", "#e8a61c")],
    "word0": [("fill", "#005f96", "#6cb6ff")],
    "word1": [("fill", "#8a5200", "#f0b93c")],
    "on0": [("fill", "#ffffff", "#06121c")],
    "on1": [("fill", "#1f1300", "#1f1300")],
    "bad": [("fill", "#c8102e", "#d92d45")],
    "badedge": [("stroke", "#c8102e", "#ff6b7d")],
    "badword": [("fill", "#b00d27", "#ff8f9c")],
    "badbox": [("fill", "#fff0f1", "#2d1216"), ("stroke", "#c8102e", "#ff6b7d")],
    "goodbox": [("fill", "#eefaf3", "#0f2419"), ("stroke", "#1a7f4b", "#3fb981")],
    "goodword": [("fill", "#14693d", "#56d39b")],
    "goodedge": [("stroke", "#1a7f4b", "#3fb981")],
    "white": [("fill", "#ffffff", "#ffffff")],
    "whiteedge": [("stroke", "#ffffff", "#ffffff")],
}


class Overflow(ValueError):
    """A text is wider than its room."""


def width(text: str, size: float, *, mono: bool = False, bold: bool = False) -> float:
    """At most how wide `text` is in pixels at `size` pixels: the widest usual fonts, DejaVu's, are taken."""
    if mono:
        return len(text) * size * 0.61
    narrow = sum(letter in "ijlt.,:;'|!()[]fI " for letter in text)
    return (narrow * 0.4 + (len(text) - narrow) * 0.63) * size * (1.08 if bold else 1.0)


def wrap(text: str, room: float, size: float, *, mono: bool = False, bold: bool = False) -> list[str]:
    """Lines that fit `room`, as few and as even as they can be. A word that does not fit alone raises `Overflow`."""
    for columns in range(len(text), 4, -1):
        lines = textwrap.wrap(text, columns, break_long_words=False, break_on_hyphens=False)
        if all(width(line, size, mono=mono, bold=bold) <= room for line in lines):
            even = [textwrap.wrap(text, n, break_long_words=False, break_on_hyphens=False) for n in range(5, columns)]
            return next((other for other in even if len(other) == len(lines) and _fits(other, columns)), lines)
    if width(text, size, mono=mono, bold=bold) <= room:
        return [text]
    raise Overflow(f"{text!r} has a word that is wider than {room:g} pixels")


def _fits(lines: list[str], columns: int) -> bool:
    return all(len(line) <= columns for line in lines)


@dataclass
class Canvas:
    """One drawing, `wide` pixels; its height is known when it is written."""

    wide: float
    _parts: list[str] = field(default_factory=list)

    def rect(self, x: float, y: float, w: float, h: float, look: str, *, round: float = 0, faint: bool = False) -> None:
        more = ' opacity="0.55"' if faint else ""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{round:g}" class="{look}"{more}/>'
        )

    def line(self, points: list[tuple[float, float]], look: str, *, thick: float = 1.5, dash: str = "") -> None:
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        more = f' stroke-dasharray="{dash}"' if dash else ""
        self._parts.append(f'<polyline points="{path}" fill="none" stroke-width="{thick:g}" class="{look}"{more}/>')

    def arrow(self, x1: float, x2: float, y: float, edge: str, bar: str, *, thick: float, dash: str) -> None:
        """A level arrow from x1 to x2."""
        back = -9 if x2 > x1 else 9
        self.line([(x1, y), (x2 + back, y)], edge, thick=thick, dash=dash)
        head = f"{x2:g},{y:g} {x2 + back:g},{y - 5:g} {x2 + back:g},{y + 5:g}"
        self._parts.append(f'<polygon points="{head}" class="{bar}"/>')

    def cross(self, x: float, y: float, edge: str, size: float = 4) -> None:
        self.line([(x - size, y - size), (x + size, y + size)], edge, thick=2.4)
        self.line([(x - size, y + size), (x + size, y - size)], edge, thick=2.4)

    def tick(self, x: float, y: float, edge: str) -> None:
        self.line([(x - 5, y), (x - 1.5, y + 4), (x + 5, y - 4.5)], edge, thick=2.4)

    def text(
        self, x: float, y: float, text: str, look: str, *,
        room: float, size: float = 13, anchor: str = "start", mono: bool = False, bold: bool = False,
        turn: bool = False,
    ) -> None:  # fmt: skip
        """One line with its baseline at y. `turn` writes it upwards."""
        wanted = width(text, size, mono=mono, bold=bold)
        if wanted > room:
            raise Overflow(f"{text!r} wants {wanted:.0f} pixels and has {room:g}")
        more = f' font-size="{size:g}" text-anchor="{anchor}"'
        more += ' font-weight="600"' if bold else ""
        more += f' transform="rotate(-90 {x:g} {y:g})"' if turn else ""
        fonts = "mono" if mono else "sans"
        self._parts.append(f'<text x="{x:g}" y="{y:g}" class="{fonts} {look}"{more}>{escape(text)}</text>')

    def write(self, high: float, title: str, description: str) -> str:
        """The drawing as an SVG document, on a card of its own colour."""
        light = "".join(_rule(name, 0) for name in COLOURS)
        dark = "".join(_rule(name, 1) for name in COLOURS)
        fonts = f".mono{{font-family:{MONO};white-space:pre}}.sans{{font-family:{SANS}}}"
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.wide:g} {high:g}" '
                f'width="{self.wide:g}" height="{high:g}" role="img">',
                f"<title>{escape(title)}</title>",
                f"<desc>{escape(description)}</desc>",
                f"<style>{fonts}{light}@media (prefers-color-scheme:dark){{{dark}}}</style>",
                f'<rect x="0.5" y="0.5" width="{self.wide - 1:g}" height="{high - 1:g}" rx="10" class="card"/>',
                *self._parts,
                "</svg>\n",
            ]
        )


def _rule(name: str, dark: int) -> str:
    return f".{name}{{{';'.join(f'{values[0]}:{values[1 + dark]}' for values in COLOURS[name])}}}"
