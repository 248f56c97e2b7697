"""Escape untrusted text from events, so that it cannot control the terminal or imitate output of Unmask."""

import logging

from rich.markup import escape


def clean(text: str, *, keep: str = "") -> str:
    r"""Replace each control, format, bidi-override or unassigned character by "�", except those in `keep`.

    >>> clean("a\x1b[31mb\u202ec"), clean("two\nlines", keep="\n")
    ('a�[31mb�c', 'two\nlines')
    """
    return "".join(c if c.isprintable() or c in keep else "�" for c in text)


def plain(text: object) -> str:
    r"""Like `clean`, for rich markup: brackets are escaped too.

    >>> plain("[red]x\x07")
    '\\[red]x�'
    """
    return escape(clean(str(text)))


def json_line(text: str) -> str:
    r"""Escape every unprintable character of a JSON text, including DEL and C1, which JSON does not escape.

    >>> json_line('"a\x7f\x9b\u202e"')
    '"a\\u007f\\u009b\\u202e"'
    """
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


class Formatter(logging.Formatter):
    """Formatter that cleans log lines, because some contain values of events."""

    def format(self, record: logging.LogRecord) -> str:
        return clean(super().format(record), keep="\n\t")
