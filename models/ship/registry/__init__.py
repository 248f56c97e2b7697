"""MLflow: runs with curves and plots, the model registry and a local cache. The only code that imports mlflow.

Scoring does not depend on MLflow: `resolve` uses the last good copy if MLflow is not available. Every call has a
timeout of a few seconds. If MLflow fails, curves, plots and tables are skipped with a warning; files, versions and
aliases raise `RegistryError`.
"""

from models.ship.registry.cache import Resolved, fetch, resolve, resolve_version
from models.ship.registry.client import PROBE_S, NoVersionError, RegistryError, answers
from models.ship.registry.datasets import Dataset
from models.ship.registry.runs import (
    FoundRun,
    Run,
    end_runs,
    fetch_folder,
    find_run,
    newest_run,
    note,
    open_run,
    publish_folder,
    resume_run,
)
from models.ship.registry.serving import Serving
from models.ship.registry.versions import (
    Alias,
    register,
    set_alias,
    set_tag,
    version_of,
    version_url,
    version_with,
    versions_like,
)

__all__ = [
    "PROBE_S",
    "Alias",
    "Dataset",
    "FoundRun",
    "NoVersionError",
    "RegistryError",
    "Resolved",
    "Run",
    "Serving",
    "answers",
    "end_runs",
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
    "resume_run",
    "set_alias",
    "set_tag",
    "version_of",
    "version_url",
    "version_with",
    "versions_like",
]
