"""What a check has found, and how many of them are asked at once."""

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
    asked = [_Asked(check) for check in checks]
    found = [finding for one in asked for finding in one.findings(began_s)]
    return [_without_secrets(finding, secrets) for finding in found]


class _Asked:
    """A check in a thread that does not keep the process alive. What it has found before it fails counts."""

    def __init__(self, check: Check) -> None:
        self._check, self._found, self._over = check, list[Finding](), threading.Event()
        threading.Thread(target=self._ask, name=f"doctor-{check.what}", daemon=True).start()

    def _ask(self) -> None:
        try:
            self._found.extend(self._check.ask())
        except Exception as failed:  # whatever is wrong there, the other checks are shown
            words = " ".join(str(failed).split()) or type(failed).__name__
            self._found.append(error(self._check.section, self._check.what, words, "mend what the message says"))
        self._over.set()

    def findings(self, began_s: float) -> list[Finding]:
        """What it has found until its deadline."""
        check = self._check
        if self._over.wait(max(0.0, began_s + check.deadline_s - time.monotonic())):
            return self._found
        late = f"not finished within {check.deadline_s:g} s"
        fix = "run `unmask doctor` again when the machine is idle"
        return [*self._found, warning(check.section, check.what, late, fix)]


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
