"""Options shared by several commands, and their values. Heavy imports are deferred, so that `--help` is fast."""

import getpass
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.errors import UnmaskError

if TYPE_CHECKING:
    from datetime import datetime

    from flows.settings import Settings
    from pipelines.contracts.stream import Stream

StreamOption = Annotated[
    Path | None,
    typer.Option("--stream", "-s", envvar="UNMASK_STREAM", help="Stream file (TOML), or the name of a shipped stream."),
]
ByOption = Annotated[str, typer.Option(default_factory=getpass.getuser, help="Who does it.", show_default="you")]
AsOfOption = Annotated[
    str | None,
    typer.Option(help="Use only what had arrived by this time, e.g. 2018-07-01 or 2018-07-01T12:00Z; default now."),
]


def stream_path(given: Path | None) -> Path:
    """The stream file that `--stream` or UNMASK_STREAM names, read once so that its mistakes come first.

    Raises:
        UnmaskError: neither is given.
        StreamFileError: the file does not exist or breaks a rule.
    """
    from flows.streams import shipped

    if given is None:
        raise UnmaskError(
            "--stream is missing: give a stream file or the name of a shipped stream "
            f"({', '.join(shipped.SHIPPED)}), or set UNMASK_STREAM"
        )
    shipped.load(given)
    return shipped.path_of(given)


def stream_of(given: Path | None) -> "Stream":
    """The stream that `--stream` or UNMASK_STREAM names; raises as `stream_path`."""
    from flows.streams import shipped

    return shipped.load(stream_path(given))


def stream_words(given: Path | None) -> str:
    """`--stream` as the user gave it, for a command to run next."""
    return f"--stream {shlex.quote(str(given))}"


def settings() -> "Settings":
    """The settings of the environment."""
    from flows.settings import Settings

    return Settings()


def moment_of(text: str | None) -> "datetime | None":
    """The time of a day or a time, in UTC unless it names a zone; None for no text.

    >>> moment_of("2018-07-01T02:00+02:00").isoformat(), moment_of(None)
    ('2018-07-01T00:00:00+00:00', None)
    """
    from datetime import UTC, datetime

    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UnmaskError(f"{text!r} is not a date or time; write 2018-07-01 or 2018-07-01T12:00Z") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)


def time_ms(text: str | None) -> int | None:
    """Milliseconds since 1970 of a day or a time; see `moment_of`.

    >>> time_ms("2018-07-01"), time_ms(None)
    (1530403200000, None)
    """
    moment = moment_of(text)
    return int(moment.timestamp() * 1000) if moment else None
