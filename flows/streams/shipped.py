"""Find a stream by the path of its stream file, or by the name of one that is included with Unmask."""

from difflib import get_close_matches
from pathlib import Path

from pipelines.contracts import stream_file
from pipelines.contracts.stream import Stream
from pipelines.errors import StreamFileError

SHIPPED = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.toml"))}


def path_of(given: Path | str) -> Path:
    """The path of the stream file given by `--stream`, UNMASK_STREAM or a deployment parameter.

    Raises:
        StreamFileError: it is neither a file nor the name of a shipped stream.

    >>> path_of("payments").name
    'payments.toml'
    """
    known = SHIPPED.get(str(given))
    path = known or Path(given)
    if not path.exists():
        close = get_close_matches(str(given), SHIPPED, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "give the path of a stream file"
        raise StreamFileError(f"{given}: no such file, nor a shipped stream ({', '.join(SHIPPED)}); {hint}")
    return path


def load(given: Path | str) -> Stream:
    """Read the stream file given by a path or a shipped name.

    Raises:
        StreamFileError: it does not exist or breaks a rule.
    """
    return stream_file.load(path_of(given))
