"""Where commands print, and the log on the screen."""

import logging

from rich.console import Console

from flows.screen import Formatter

out = Console()
err = Console(stderr=True)


def show_log(level: int, form: str) -> None:
    """Print our log to stderr; not by the root logger, which Prefect configures for itself."""
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter(form))
    for name, least in (("flows", level), ("models", level), ("pipelines", level), ("kafka", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(least)
    # On a busy machine it warns of each tenth of a second that it was held up.
    logging.getLogger("kafka.net.selector").setLevel(logging.ERROR)
