"""One document, written as Markdown for the repository and as one self-contained page of HTML.

Owns the two ways of writing, and nothing of what is written. Text knows `code`, **bold**, *emphasis* and [links](to).
The HTML is well-formed XML too, so that its form can be checked; pictures stand in it as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final


@dataclass(frozen=True)
class Heading:
    level: int
    text: str


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Items:
    """A list; `numbered` writes (1), (2) and so on."""

    texts: Sequence[str]
    numbered: bool = False


@dataclass(frozen=True)
class Code:
    text: str
    language: str = ""


@dataclass(frozen=True)
class Table:
    """Columns named in `right` are set to the right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Sequence[str] = ()


@dataclass(frozen=True)
class Image:
    """A picture beside the Markdown, inside the HTML."""

    file: str
    alternative: str
    svg: str


Block = Heading | Text | Items | Code | Table | Image

_STYLE: Final = """
:root { color-scheme: light dark; --edge: #d0d7de; --soft: #f6f8fa; --link: #0969da; }
@media (prefers-color-scheme: dark) { :root { --edge: #3d444d; --soft: #151b23; --link: #4493f8; } }
body { font: 16px/1.55 -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; max-width: 76rem;
  margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.25; margin: 2.2rem 0 0.8rem; }
h2 { border-bottom: 1px solid var(--edge); padding-bottom: 0.3rem; }
a { color: var(--link); }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 0.87em;
  background: var(--soft); border-radius: 6px; }
code { padding: 0.1em 0.3em; }
pre { padding: 0.8rem 1rem; overflow-x: auto; border: 1px solid var(--edge); }
pre code { padding: 0; font-size: 1em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.84rem; }
th, td { border: 1px solid var(--edge); padding: 0.3rem 0.6rem; text-align: left; vertical-align: top; }
th { background: var(--soft); }
.right { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td:first-child { white-space: nowrap; }
p, li { max-width: 54rem; }
figure { margin: 1rem 0 2rem; }
figure svg { max-width: 100%; height: auto; }
"""


def markdown(blocks: Sequence[Block]) -> str:
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def html(title: str, blocks: Sequence[Block]) -> str:
    body = "\n".join(_html(block) for block in blocks)
    return (
        '<!DOCTYPE html>\n<html xmlns="http://www.w3.org/1999/xhtml" lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def table_row(cells: Sequence[str]) -> str:
    """One row of a Markdown table."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _markdown(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {text}"
        case Text(text):
            return text
        case Items(texts, numbered):
            return "\n".join(f"{f'{n}.' if numbered else '*'} {text}" for n, text in enumerate(texts, 1))
        case Code(text, language):
            return f"```{language}\n{text}\n```"
        case Table(head, rows, right):
            rule = table_row(["---:" if name in right else "---" for name in head])
            return "\n".join([table_row(head), rule, *map(table_row, rows)])
        case Image(file, alternative, _):
            return f"![{alternative}]({file})"


def _html(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"<h{level}>{_inline(text)}</h{level}>"
        case Text(text):
            return f"<p>{_inline(text)}</p>"
        case Items(texts, numbered):
            tag = "ol" if numbered else "ul"
            return f"<{tag}>\n{''.join(f'<li>{_inline(text)}</li>{chr(10)}' for text in texts)}</{tag}>"
        case Code(text, _):
            return f"<pre><code>{escape(text)}</code></pre>"
        case Table(head, rows, right):
            marks = [' class="right"' if name in right else "" for name in head]
            lines = [_cells("th", head, marks), *(_cells("td", row, marks) for row in rows)]
            return f'<div class="wide"><table>\n{chr(10).join(lines)}\n</table></div>'
        case Image(_, _, svg):
            return f"<figure>{svg}</figure>"


def _cells(tag: str, cells: Sequence[str], marks: Sequence[str]) -> str:
    both = zip(cells, marks, strict=True)
    return f"<tr>{''.join(f'<{tag}{mark}>{_inline(cell)}</{tag}>' for cell, mark in both)}</tr>"


_MARKS: Final[list[tuple[str, Callable[[re.Match[str]], str]]]] = [
    (r"\*\*(.+?)\*\*", lambda found: f"<strong>{found[1]}</strong>"),
    (r"\*([^*]+)\*", lambda found: f"<em>{found[1]}</em>"),
    (r"\[([^]]+)\]\(([^)]+)\)", lambda found: f'<a href="{found[2]}">{found[1]}</a>'),
]


def _inline(text: str) -> str:
    """Marks are read outside of code only."""
    parts = escape(text, quote=False).split("`")
    for at in range(0, len(parts), 2):
        for pattern, write in _MARKS:
            parts[at] = re.sub(pattern, write, parts[at])
    parts[1::2] = [f"<code>{part}</code>" for part in parts[1::2]]
    return "".join(parts)
