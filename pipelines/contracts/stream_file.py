"""Reads and checks the stream file (TOML). All mistakes are reported at once."""

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

from pipelines.contracts.stream import Stream
from pipelines.contracts.stream_checks import StreamChecks
from pipelines.contracts.stream_tables import Problems, duration_ms, read_document
from pipelines.contracts.toml_lines import lines_of
from pipelines.errors import Problem, StreamFileError

__all__ = ["duration_ms", "load", "parse"]

_SYNTAX_FIXES = {
    "Invalid value": 'text needs quotes, as in name = "payments"',
    "Expected '=' after a key": "a name with spaces or special characters needs quotes",
    "Cannot overwrite a value": "the key occurs twice in its table; remove one",
    "Cannot declare": "the table occurs twice; merge the two",
    "Unescaped '\\'": r"write \\, or use single quotes",
}


def load(path: Path) -> Stream:
    """Read a stream file: TOML in UTF-8, with or without a byte-order mark.

    Raises:
        StreamFileError: the file cannot be read or breaks a rule; `problems` lists every mistake with line and fix.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise _error(
            str(path), [_whole(f"cannot be read ({error.strerror})", "give the path of a stream file")]
        ) from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wide = _wide_encoding(raw)
        problem = f"is {wide}" if wide else f"is not UTF-8 (byte {error.start})"
        found = Problem(0 if wide else raw[: error.start].count(b"\n") + 1, "", "", problem, "save it as UTF-8")
        raise _error(str(path), [found]) from error
    if "\0" in text:
        raise _error(str(path), [_whole(f"is {_wide_encoding(raw) or 'not text'}", "save it as UTF-8")])
    return parse(text, where=str(path))


def parse(text: str, *, where: str = "stream file") -> Stream:
    """Parse the text of a stream file; `where` names it in errors.

    Raises:
        StreamFileError: it breaks a rule; `problems` lists every mistake with line and fix.
    """
    text = text.removeprefix("\ufeff")
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _error(where, [_syntax_problem(str(error), text)]) from error
    if not raw:
        raise _error(where, [_whole("is empty", "a stream file needs at least the tables [stream] and [fields]")])
    problems = Problems(lines_of(text))
    checks = StreamChecks(read_document(raw, problems), raw, problems)
    checks.run()
    if found := problems.sorted():
        raise _error(where, found)
    return checks.stream()


def _error(where: str, problems: Sequence[Problem]) -> StreamFileError:
    if len(problems) == 1:
        at = f", line {problems[0].line}" if problems[0].line else ""
        after = ":" if problems[0].where else "," if at else ""
        return StreamFileError(f"{where}{at}{after} {problems[0]}", problems)
    lines = (f"{n:>4}. {f'line {p.line}: ' if p.line else ''}{p}" for n, p in enumerate(problems, start=1))
    return StreamFileError("\n".join([f"{where} has {len(problems)} problems:", *lines]), problems)


def _whole(problem: str, fix: str) -> Problem:
    return Problem(0, "", "", problem, fix)


def _wide_encoding(raw: bytes) -> str:
    if raw[:4] in (b"\xff\xfe\0\0", b"\0\0\xfe\xff"):
        return "UTF-32"
    return "UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in raw[:2] else ""


def _syntax_problem(said: str, text: str) -> Problem:
    place = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", said)
    line = (int(place[1]) if place[1] else text.count("\n") + 1) if place else 0
    what = said[: place.start()] if place else said
    fix = next((fix for begin, fix in _SYNTAX_FIXES.items() if what.startswith(begin)), "correct this line first")
    return Problem(line, "", "", f"is not valid TOML: {what}", fix)
