"""The entry point `unmask`: each error becomes one message and an exit code."""

import errno
import logging
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from flows.cli.root import app
from flows.cli.terminal import err, show_log
from flows.extras import MissingExtraError
from flows.screen import clean
from models.errors import ModelError
from pipelines.errors import FencedError, UnmaskError

# A full or read-only disk, or a path of the wrong kind: for the user to fix, not a defect.
DISK_ERRORS = {
    getattr(errno, name)
    for name in ("EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT", "ENOTDIR", "EISDIR", "EEXIST", "ELOOP", "ENAMETOOLONG")
}
_NEWLINE = "\n"


def main() -> None:
    """Run a command. SIGTERM ends it as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    show_log(logging.WARNING, "%(levelname)s: %(message)s")
    try:
        app()
    except FencedError as error:
        _show(str(error))
        sys.exit(3)
    except (UnmaskError, ModelError) as error:
        _show(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and (missing := MissingExtraError.of(error.name or "")):
            _show(str(missing))
            sys.exit(2)
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            _show(
                f"{error.filename or 'a file'}: {error.strerror}; free some space, fix its permissions, or set "
                "UNMASK_HOME to another folder"
            )
            sys.exit(2)
        _show(f"internal error, a defect of Unmask: {type(error).__name__}: {error} ({_keep_traceback(error)})")
        sys.exit(4)


def _show(message: str) -> None:
    err.print(f"error: {clean(message, keep=_NEWLINE)}", style="red", highlight=False, markup=False, soft_wrap=True)


def _keep_traceback(error: Exception) -> str:
    """Append the traceback to UNMASK_HOME/defects.log, or show it if that fails; says where it is."""
    path = Path(os.environ.get("UNMASK_HOME") or ".unmask") / "defects.log"
    text = clean("".join(traceback.format_exception(error)), keep=_NEWLINE)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {sys.argv[1:]}\n{text}\n")
    except OSError:
        sys.stderr.write(text)
        return "traceback above"
    return f"its traceback is in {path}; please report it"
