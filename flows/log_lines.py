"""Log lines of a service: as JSON for a log store, and at most one a second about a fault that repeats."""

import json
import logging
import time
import traceback

from flows.screen import clean, json_line
from pipelines.contracts.messages import rfc3339


class JsonLines(logging.Formatter):
    """One JSON object per line: `at`, `level`, `logger`, `message`; of a defect also `error` and where it was raised.

    The text of a defect's exception is left out, because it may contain values of events.

    Example:
        >>> record = logging.LogRecord("pipelines.live", logging.WARNING, "", 0, "partition %d is slow", (3,), None)
        >>> json.loads(JsonLines().format(record))["message"]
        'partition 3 is slow'
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": rfc3339(round(record.created * 1000)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": clean(record.getMessage(), keep="\n\t"),
        }
        if record.exc_info and (error := record.exc_info[1]) is not None:
            line["error"] = type(error).__name__
            frames = traceback.extract_tb(error.__traceback__)
            line["raised"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        return json_line(json.dumps(line, ensure_ascii=False))


class OncePerSecond(logging.Filter):
    """Holds back warnings and errors that the same line has logged about the same thing within a second.

    The same thing: the first argument, such as a partition, is the same. The next line that passes tells how many were
    held back.
    """

    def __init__(self, *, every_s: float = 1.0) -> None:
        super().__init__()
        self._every_s = every_s
        self._passed: dict[tuple[str, int, str], tuple[float, int]] = {}  # when, and how many were held back since

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        about = str(record.args[0])[:80] if isinstance(record.args, tuple) and record.args else ""
        key = record.pathname, record.lineno, about
        passed_s, n_held_back = self._passed.get(key, (float("-inf"), 0))
        now_s = time.monotonic()
        if now_s - passed_s < self._every_s:
            self._passed[key] = passed_s, n_held_back + 1
            return False
        if n_held_back:
            record.msg = f"{record.msg} ({n_held_back} similar lines held back)"
        self._passed = {k: v for k, v in self._passed.items() if now_s - v[0] < 60.0} | {key: (now_s, 0)}
        return True
