"""Parts of the HTML reports: one page without other files, tables, tiles and figures."""

from collections.abc import Iterable, Sequence
from html import escape

from flows.screen import clean

MAX_SHOWN = 48  # maximum characters of a value in a table
STYLE = """
:root { --ink: #1d2733; --soft: #5d6b7a; --line: #dfe5ec; --blue: #0072b2; --red: #c2410c; --pale: #f5f8fb }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: var(--ink); margin: 0; background: #fff }
main { max-width: 1080px; margin: 0 auto; padding: 28px 24px 60px }
h1 { font-size: 25px; margin: 0 0 2px } h2 { font-size: 18px; margin: 34px 0 8px } p { margin: 6px 0 }
.soft { color: var(--soft) } .lead { font-size: 17px; margin: 10px 0 16px }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 12px }
.tile { background: var(--pale); border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px }
.tile b { display: block; font-size: 23px; line-height: 1.25 } .tile span { color: var(--soft); font-size: 13px }
p.warn { background: #fff4e5; border-left: 4px solid #e69f00; border-radius: 4px; padding: 8px 12px; margin: 0 0 14px }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 18px; align-items: start }
figure { margin: 0; max-width: 640px } figure svg { width: 100%; height: auto }
figcaption { font-weight: 600; font-size: 14px }
table { border-collapse: collapse; width: 100%; font-size: 14px }
th { text-align: left; color: var(--soft); font-weight: 600 } td, th { padding: 4px 8px 4px 0; vertical-align: top }
tr + tr td { border-top: 1px solid var(--line) } .n { text-align: right; font-variant-numeric: tabular-nums }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(440px, 1fr)); gap: 14px }
.card { border: 1px solid var(--line); border-left: 4px solid var(--blue); border-radius: 8px; padding: 10px 14px }
.card.right { border-left-color: var(--red) } .card h3 { font-size: 15px; margin: 0; display: flex; gap: 8px }
.card h3 span { margin-left: auto; font-weight: 400; color: var(--soft) } .card table { margin-top: 6px }
.tag { background: var(--red); color: #fff; border-radius: 4px; padding: 0 6px; font-size: 12px; font-weight: 600 }
.bar { display: inline-block; height: 9px; border-radius: 2px; background: var(--blue); min-width: 2px }
.bar.off { background: #c3ccd6 } td:first-child { white-space: nowrap } .card { overflow-x: auto }
.card table { font-size: 13px } .card td, .card th { padding-right: 7px }
code { background: var(--pale); border: 1px solid var(--line); border-radius: 4px; padding: 0 4px; font-size: 13px }
summary { cursor: pointer; color: var(--blue); margin: 12px 0 6px } li { margin: 4px 0 }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page of parts that are HTML."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def tiles(found: Iterable[tuple[str, str]]) -> str:
    """Figures with a word about each."""
    shown = (f'<div class="tile"><b>{text(figure)}</b><span>{text(words)}</span></div>' for figure, words in found)
    return f'<div class="tiles">{"".join(shown)}</div>'


def figures(drawn: Iterable[tuple[str, str]]) -> str:
    """SVG figures with their captions, two beside each other. A figure that has a title itself has the caption ""."""
    captions = ((f"<figcaption>{text(title)}</figcaption>" if title else "", svg) for title, svg in drawn)
    shown = (f"<figure>{caption}{svg}</figure>" for caption, svg in captions)
    return f'<div class="two">{"".join(shown)}</div>'


def facts(found: Iterable[tuple[str, str]]) -> str:
    """Names with what they are."""
    rows = (f'<tr><td class="soft">{text(name)}</td><td>{text(words)}</td></tr>' for name, words in found)
    return f"<table>{''.join(rows)}</table>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts."""
    top = "".join(f"<th>{text(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def bullets(lines: Iterable[str]) -> str:
    """A list of texts."""
    return f"<ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>"


def text(words: str) -> str:
    """Escape untrusted text for HTML."""
    return escape(clean(words))


def value(found: float | str | None) -> str:
    """A value of an event, shortened.

    >>> value(None), value(1234.5), value(0.12345)
    ('missing', '1,234', '0.1235')
    """
    if found is None:
        return "missing"
    if isinstance(found, str):
        return found if len(found) <= MAX_SHOWN else f"{found[: MAX_SHOWN - 1]}…"
    return f"{found:,.0f}" if abs(found) >= 1000 else f"{found:.4g}"
