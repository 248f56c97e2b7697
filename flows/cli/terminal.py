"""Where commands print, and the log on the screen."""

import logging

from rich.console import Console

from flows.log_lines import JsonLines, OncePerSecond
from flows.screen import Formatter

out = Console()
err = Console(stderr=True)


def show_log(level: int, form: str) -> None:
    """Print our log to stderr; not by the root logger, which Prefect configures for itself."""
    _show(Formatter(form), level)


def show_service_log(*, as_json: bool) -> None:
    """Print the log of a service to stderr: with times, and at most once a second what repeats."""
    form = JsonLines() if as_json else Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    _show(form, logging.INFO, OncePerSecond())


def _show(formatter: logging.Formatter, level: int, *filters: logging.Filter) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    for one in filters:
        handler.addFilter(one)
    for name, least in (("flows", level), ("models", level), ("pipelines", level), ("kafka", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(least)
    # On a busy machine it warns of each tenth of a second that it was held up.
    logging.getLogger("kafka.net.selector").setLevel(logging.ERROR)
