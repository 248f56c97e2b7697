"""Settings from environment variables, read once and immutable. `unmask --help` lists them."""

import logging
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from flows.extras import require
from flows.local import kafka_server, servers
from models.ship.registry import PROBE_S, answers
from pipelines.contracts.stream import Stream
from pipelines.errors import UnmaskError
from pipelines.features.bucket import Place
from pipelines.kafka.connection import Connection
from pipelines.kafka.kafka_python.client import KafkaPython
from pipelines.kafka.port import Adapter
from pipelines.lake.shards import Workers
from pipelines.lake.tables import Lake

log = logging.getLogger(__name__)

# A home with only these files is made private; permissions of other folders are not changed.
OURS = {"kafka", "demo-kafka", "ui", "models", "lake", "features", "snapshots", "scorer", "work", "numba", "audit"}
OURS |= {"encoders", "monitor", "defects.log"}

POOL = "unmask"  # Prefect's work pool


def registry_name(stream: Stream) -> str:
    """Name of the stream's model in the registry."""
    return f"{stream.name}-scorer"


class SettingsError(UnmaskError):
    """A setting is missing or has a wrong value. The message says which one and how to set it."""


class Settings(BaseSettings):
    """Addresses and folders. If a server is not set, the local one is used (`unmask kafka|ui start`).

    Raises:
        SettingsError: a variable has a wrong value.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    home: Path = Field(Path(".unmask"), validation_alias="UNMASK_HOME")
    stream: Path | None = Field(None, validation_alias="UNMASK_STREAM")
    log: Literal["text", "json"] = Field("text", validation_alias="UNMASK_LOG")
    snapshot_place: str | None = Field(
        None,
        validation_alias="UNMASK_SNAPSHOTS",
        pattern=r"^((s3|gs|az|abfss?)://[^/]+|[^:]+$)",
        description="a folder, or a URL that begins with s3://, gs://, az:// or abfs://",
    )
    backfill: str | None = Field(
        None,
        validation_alias="UNMASK_BACKFILL",
        pattern=r"^(dask|(tcp|tls)://[^/\s]+:\d+)$",
        description="dask, or the address of a Dask scheduler: tcp://host:8786 or tls://host:8786",
    )
    kafka: str | None = Field(
        None,
        validation_alias="KAFKA_BOOTSTRAP_SERVERS",
        pattern=r"^[^,\s]+:\d+(,[^,\s]+:\d+)*$",
        description="host:port, or several separated by commas",
    )
    kafka_client: Literal["kafka-python", "confluent-kafka"] = Field("kafka-python", validation_alias="KAFKA_CLIENT")
    mlflow: str | None = Field(
        None, validation_alias="MLFLOW_TRACKING_URI", pattern=r"^\w+://", description="http://host:port"
    )
    prefect: str | None = Field(
        None, validation_alias="PREFECT_API_URL", pattern=r"^https?://", description="http://host:port/api"
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] | None = Field(
        None, validation_alias="KAFKA_SECURITY_PROTOCOL"
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI"] | None = Field(
        None, validation_alias="KAFKA_SASL_MECHANISM"
    )
    sasl_username: str | None = Field(None, validation_alias="KAFKA_SASL_USERNAME")
    sasl_password: SecretStr | None = Field(None, validation_alias="KAFKA_SASL_PASSWORD")
    sasl_password_file: Path | None = Field(None, validation_alias="KAFKA_SASL_PASSWORD_FILE")
    ssl_cafile: Path | None = Field(None, validation_alias="KAFKA_SSL_CAFILE")

    def __init__(self) -> None:
        try:
            super().__init__()
        except ValidationError as error:
            shapes = {f.validation_alias: f.description for f in type(self).model_fields.values()}
            said = []
            for e in error.errors():
                name = str(e["loc"][0])
                shape = shapes.get(name) or e.get("ctx", {}).get("expected", e["msg"])
                said.append(f"{name} is {e['input']!r}; it must be {shape}")
            raise SettingsError("; ".join(said)) from None
        _keep_private(self.home)

    def connection(self) -> Connection:
        """Kafka of KAFKA_BOOTSTRAP_SERVERS, or the local one of `unmask kafka start` or `unmask demo --keep`.

        Raises:
            SettingsError: there is neither.
            MissingExtraError: the client of KAFKA_CLIENT is not installed.
        """
        adapter = self._adapter()
        if self.kafka:
            return Connection(self.kafka, self._client_options(), adapter)
        local = next(filter(None, map(kafka_server.find_broker, self.kafka_folders)), None)
        if local is None:
            raise SettingsError(
                "no Kafka server is set or running here; run `unmask kafka start`, or set "
                "KAFKA_BOOTSTRAP_SERVERS=host:port"
            )
        return Connection(local.bootstrap, adapter=adapter)

    def _adapter(self) -> Adapter:
        """The adapter of KAFKA_CLIENT; confluent-kafka is imported only if it is asked for."""
        if self.kafka_client == "kafka-python":
            return KafkaPython
        require("fast")
        from pipelines.kafka.confluent.client import Confluent

        return Confluent

    def tracking_uri(self) -> str:
        """MLflow of MLFLOW_TRACKING_URI, or the local one of `unmask ui start`.

        Raises:
            SettingsError: there is neither.
        """
        if self.mlflow:
            return self.mlflow
        local = servers.find_servers(self.ui_folder)
        if local is None:
            raise SettingsError(
                "no MLflow server is set or running here; run `unmask ui start`, or set "
                "MLFLOW_TRACKING_URI=http://host:port"
            )
        return local.mlflow_uri

    def tracking_uri_or_nowhere(self) -> str:
        """The address of MLflow, or an unused address, because a scorer can start from its local copy."""
        try:
            return self.tracking_uri()
        except SettingsError:
            return "http://127.0.0.1:9"

    def prefect_environment(self) -> Mapping[str, str]:
        """Environment variables that make Prefect use PREFECT_API_URL or the server of `unmask ui start`.

        Raises:
            SettingsError: there is neither, or it does not answer.
        """
        api = self.prefect
        if api is None:
            local = servers.find_servers(self.ui_folder)
            if local is None:
                raise SettingsError(
                    "no Prefect server is set or running here; run `unmask ui start`, or set "
                    "PREFECT_API_URL=http://host:port/api"
                )
            api = local.prefect_api
        if not answers(api):
            raise SettingsError(
                f"Prefect at {api} did not answer within {PROBE_S:.0f} s; start it (`unmask ui start`), or set "
                "PREFECT_API_URL=http://host:port/api"
            )
        return {
            **servers.NO_CALLS_HOME,
            # With Prefect's defaults, a dead server causes a delay of one minute, a hanging one of six.
            "PREFECT_API_REQUEST_TIMEOUT": os.environ.get("PREFECT_API_REQUEST_TIMEOUT", "8"),
            "PREFECT_CLIENT_MAX_RETRIES": os.environ.get("PREFECT_CLIENT_MAX_RETRIES", "1"),
            "PREFECT_API_URL": api,
            "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        }

    @property
    def kafka_folder(self) -> Path:
        return self.home / "kafka"

    @property
    def demo_kafka_folder(self) -> Path:
        """Folder of the demo's broker. The next demo deletes its data."""
        return self.home / "demo-kafka"

    @property
    def kafka_folders(self) -> tuple[Path, Path]:
        """Folders of local brokers: that of `unmask kafka start`, then that of `unmask demo --keep`."""
        return self.kafka_folder, self.demo_kafka_folder

    @property
    def ui_folder(self) -> Path:
        return self.home / "ui"

    @property
    def model_cache(self) -> Path:
        return self.home / "models"

    @property
    def encoder_cache(self) -> Path:
        return self.home / "encoders"

    def lake(self, stream: Stream) -> Lake:
        """The stream's lake."""
        return Lake(self.home / "lake", stream)

    def features(self, stream: Stream) -> Path:
        """Folder of the stream's feature tables."""
        return self.home / "features" / stream.topics

    def workers(self) -> Workers | None:
        """What opens the processes that build feature tables; None = the process that needs one builds it.

        Raises:
            MissingExtraError: Dask is not installed.
        """
        if not self.backfill:
            return None
        require("grow")
        from flows.backfill import cluster

        return partial(cluster, self.backfill)

    def snapshots(self, stream: Stream) -> Place:
        """Where the scorer's state snapshots lie.

        Raises:
            MissingExtraError: it is an object store, and the library for it is not installed.
        """
        here = Place(self.home / "snapshots") / stream.topics
        if not self.snapshot_place:
            return here
        if "://" not in self.snapshot_place:
            return Place(Path(self.snapshot_place)) / stream.topics
        require("bucket")
        return Place(here.folder, f"{self.snapshot_place.rstrip('/')}/{stream.topics}")

    def scorer_status(self, stream: Stream, replica: str | None = None) -> Path:
        """The status file of the running scorer, or of one of several on this machine."""
        return self.home / "scorer" / f"{stream.topics}{f'-{replica}' if replica else ''}.json"

    def audit_file(self, stream: Stream) -> Path:
        """The books of the continuous audit."""
        return self.home / "audit" / f"{stream.topics}.json"

    def monitor_folder(self, stream: Stream) -> Path:
        """Folder of the newest report about drift, and of its gauges for Prometheus."""
        return self.home / "monitor" / stream.topics

    def work_folder(self, stream: Stream, stage: str) -> Path:
        """Folder in which a stage stores its checkpoints."""
        return self.home / "work" / stream.topics / stage

    def _client_options(self) -> dict[str, Any]:
        """Options of Kafka's client, the same for every adapter.

        Raises:
            SettingsError: the settings are inconsistent, or a file cannot be read.
        """
        wants_login = (self.security_protocol or "").startswith("SASL")
        password = self.sasl_password.get_secret_value() if self.sasl_password else None
        if self.sasl_password_file:
            password = _read(self.sasl_password_file, "KAFKA_SASL_PASSWORD_FILE").strip()
        if (
            wants_login
            and self.sasl_mechanism != "GSSAPI"
            and not (self.sasl_mechanism and self.sasl_username and password)
        ):
            raise SettingsError(
                f"KAFKA_SECURITY_PROTOCOL={self.security_protocol} needs KAFKA_SASL_MECHANISM, KAFKA_SASL_USERNAME and "
                "KAFKA_SASL_PASSWORD or KAFKA_SASL_PASSWORD_FILE; one of them is missing or empty"
            )
        if not wants_login and (self.sasl_mechanism or self.sasl_username or password):
            raise SettingsError(
                f"KAFKA_SECURITY_PROTOCOL is {self.security_protocol or 'not set'}; it must be SASL_SSL or "
                "SASL_PLAINTEXT, otherwise KAFKA_SASL_MECHANISM, _USERNAME and _PASSWORD are not used"
            )
        if self.ssl_cafile:
            _read(self.ssl_cafile, "KAFKA_SSL_CAFILE")
        options = {
            "security_protocol": self.security_protocol,
            "sasl_mechanism": self.sasl_mechanism,
            "sasl_plain_username": self.sasl_username,
            "sasl_plain_password": password,
            "ssl_cafile": str(self.ssl_cafile) if self.ssl_cafile else None,
        }
        return {name: value for name, value in options.items() if value is not None}


def _read(path: Path, variable: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{variable}={path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{variable}={path} is not text (byte {error.start})") from error


def _keep_private(home: Path) -> None:
    """Make the home readable by its owner only, because it contains events, models and scores.

    Raises:
        SettingsError: it is not a folder.
    """
    with suppress(OSError):  # if it cannot be created, the first write reports it
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not home.is_dir():
        raise SettingsError(
            f"UNMASK_HOME={home} is not a folder and cannot be created; set UNMASK_HOME to another folder"
        )
    if (mode := home.stat().st_mode) & 0o077:
        if {entry.name for entry in home.iterdir()} <= OURS:
            with suppress(OSError):
                home.chmod(0o700)
        else:
            _warn_once(home, stat.filemode(mode))


@cache
def _warn_once(home: Path, mode: str) -> None:
    log.warning("other users of this machine can read UNMASK_HOME=%s (%s); run: chmod 700 %s", home, mode, home)
