"""What a check has found, and how many of them are asked at once."""

import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum


class Level(StrEnum):
    """How bad it is. Only an error makes the exit code 1."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        section: the part of the report, such as "topics".
        what: the thing, such as the name of a topic.
        found: the state that it is in.
        fix: the command that mends it, or what to do; empty if it is well.
    """

    section: str
    level: Level
    what: str
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Check:
    """A check of a section: `ask` returns its findings within `deadline_s`, or is given up."""

    section: str
    what: str
    ask: Callable[[], Iterable[Finding]]
    deadline_s: float = 12.0


def ok(section: str, what: str, found: str) -> Finding:
    """What is as it should be."""
    return Finding(section, Level.OK, what, found)


def warning(section: str, what: str, found: str, fix: str) -> Finding:
    """What will be wrong some day, or is not as good as it could be."""
    return Finding(section, Level.WARNING, what, found, fix)


def error(section: str, what: str, found: str, fix: str) -> Finding:
    """What is wrong."""
    return Finding(section, Level.ERROR, what, found, fix)


def ask_all(checks: Sequence[Check], *, secrets: Sequence[str] = ()) -> list[Finding]:
    """Run the checks side by side; the findings in the order of the checks.

    A check that takes longer than its deadline, or fails, is a finding too. Logins are removed from all texts.

    Args:
        secrets: texts that must not appear in a finding.
    """
    began_s = time.monotonic()
    answers = [_begin(check) for check in checks]
    found: list[Finding] = []
    for check, answer in zip(checks, answers, strict=True):
        left_s = max(0.0, began_s + check.deadline_s - time.monotonic())
        try:
            found += answer.get(timeout=left_s)
        except queue.Empty:
            late = f"no answer within {check.deadline_s:g} s"
            found.append(warning(check.section, check.what, late, "run `unmask doctor` again when the machine is idle"))
    return [_without_secrets(finding, secrets) for finding in found]


def _begin(check: Check) -> "queue.SimpleQueue[list[Finding]]":
    """Start a check in a thread that does not keep the process alive."""
    answer: queue.SimpleQueue[list[Finding]] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answer.put(list(check.ask()))
        except Exception as failed:  # whatever is wrong there, the other checks are shown
            words = " ".join(str(failed).split()) or type(failed).__name__
            answer.put([error(check.section, check.what, words, "mend what the message says")])

    threading.Thread(target=ask, name=f"doctor-{check.section}", daemon=True).start()
    return answer


def without_login(text: str) -> str:
    """The text without the logins and queries of its URLs.

    >>> without_login("MLflow at https://ann:pw@host:5000/x?token=1 failed")
    'MLflow at https://host:5000/x failed'
    """
    return re.sub(r"(\w://[^\s?]*)\?\S*", r"\1", re.sub(r"(?<=://)[^/\s]*@", "", text))


def _without_secrets(finding: Finding, secrets: Sequence[str]) -> Finding:
    def clean(text: str) -> str:
        for secret in secrets:
            text = text.replace(secret, "***")
        return without_login(text)

    return replace(finding, found=clean(finding.found), fix=clean(finding.fix))
