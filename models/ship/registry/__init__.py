"""MLflow: runs with their curves and plots, the registry of models, and copies of them. The only part with mlflow.

The registry is a convenience, never a need: `resolve` goes on with the last good copy when MLflow is away. Every call
has a limit of a few seconds; what only shows (curves, plots, tables) is omitted with a warning where MLflow fails,
what others build on (files, versions, aliases) raises `RegistryError`.
"""

from models.ship.registry.cache import Resolved, fetch, resolve, resolve_version
from models.ship.registry.client import PROBE_S, RegistryError, answers
from models.ship.registry.runs import (
    FoundRun,
    Run,
    fetch_folder,
    find_run,
    newest_run,
    note,
    open_run,
    publish_folder,
)
from models.ship.registry.versions import Alias, register, set_alias, version_of

__all__ = [
    "PROBE_S",
    "Alias",
    "FoundRun",
    "RegistryError",
    "Resolved",
    "Run",
    "answers",
    "fetch",
    "fetch_folder",
    "find_run",
    "newest_run",
    "note",
    "open_run",
    "publish_folder",
    "register",
    "resolve",
    "resolve_version",
    "set_alias",
    "version_of",
]
