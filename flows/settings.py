"""Settings: read once from the environment, frozen, passed on. `unmask --help` names them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from flows import kafka_server, servers
from pipelines.broker import Connection
from pipelines.errors import UnmaskError
from pipelines.lake import Lake
from pipelines.stream import Stream


def registry_name(stream: Stream) -> str:
    """Name of the stream's model in the registry."""
    return f"{stream.name}-scorer"


class SettingsError(UnmaskError):
    """A setting is missing; says which and how to give it."""


class Settings(BaseSettings):
    """Where things are. Servers not named are looked for among those started here (`unmask kafka|ui start`)."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    home: Path = Field(Path(".unmask"), validation_alias="UNMASK_HOME")
    stream: Path | None = Field(None, validation_alias="UNMASK_STREAM")
    kafka: str | None = Field(None, validation_alias="KAFKA_BOOTSTRAP_SERVERS")
    mlflow: str | None = Field(None, validation_alias="MLFLOW_TRACKING_URI")
    prefect: str | None = Field(None, validation_alias="PREFECT_API_URL")
    security_protocol: str | None = Field(None, validation_alias="KAFKA_SECURITY_PROTOCOL")
    sasl_mechanism: str | None = Field(None, validation_alias="KAFKA_SASL_MECHANISM")
    sasl_username: str | None = Field(None, validation_alias="KAFKA_SASL_USERNAME")
    sasl_password: SecretStr | None = Field(None, validation_alias="KAFKA_SASL_PASSWORD")
    sasl_password_file: Path | None = Field(None, validation_alias="KAFKA_SASL_PASSWORD_FILE")
    ssl_cafile: Path | None = Field(None, validation_alias="KAFKA_SSL_CAFILE")

    def connection(self) -> Connection:
        """Kafka, as named by KAFKA_BOOTSTRAP_SERVERS, or started here by `unmask kafka start` or `unmask demo --keep`.

        Raises:
            SettingsError: neither is there.
        """
        if self.kafka:
            return Connection(self.kafka, self._client_options())
        local = next(filter(None, map(kafka_server.find_broker, self.kafka_folders)), None)
        if local is None:
            raise SettingsError("no Kafka: run `unmask kafka start`, or set KAFKA_BOOTSTRAP_SERVERS=host:port")
        return Connection(local.bootstrap)

    def tracking_uri(self) -> str:
        """MLflow, as named by MLFLOW_TRACKING_URI or started by `unmask ui start`.

        Raises:
            SettingsError: neither is there.
        """
        if self.mlflow:
            return self.mlflow
        local = servers.find_servers(self.ui_folder)
        if local is None:
            raise SettingsError("no MLflow: run `unmask ui start`, or set MLFLOW_TRACKING_URI=http://host:port")
        return local.mlflow_uri

    def tracking_uri_or_nowhere(self) -> str:
        """MLflow's address, or one that nobody answers at: a scorer starts without MLflow, on its last good copy."""
        try:
            return self.tracking_uri()
        except SettingsError:
            return "http://127.0.0.1:9"

    def prefect_environment(self) -> Mapping[str, str]:
        """Environment under which Prefect reports to PREFECT_API_URL or to the server of `unmask ui start`.

        Raises:
            SettingsError: neither is there.
        """
        api = self.prefect
        if api is None:
            local = servers.find_servers(self.ui_folder)
            if local is None:
                raise SettingsError("no Prefect: run `unmask ui start`, or set PREFECT_API_URL=http://host:port/api")
            api = local.prefect_api
        return {
            **servers.NO_CALLS_HOME,
            "PREFECT_API_URL": api,
            "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        }

    @property
    def kafka_folder(self) -> Path:
        return self.home / "kafka"

    @property
    def demo_kafka_folder(self) -> Path:
        """The demo's broker has data of its own, forgotten by the next demo."""
        return self.home / "demo-kafka"

    @property
    def kafka_folders(self) -> tuple[Path, Path]:
        """Where a broker of this machine may run: that of daily work, then that of `unmask demo --keep`."""
        return self.kafka_folder, self.demo_kafka_folder

    @property
    def ui_folder(self) -> Path:
        return self.home / "ui"

    @property
    def model_cache(self) -> Path:
        return self.home / "models"

    def lake(self, stream: Stream) -> Lake:
        """The stream's lake."""
        return Lake(self.home / "lake", stream)

    def snapshots(self, stream: Stream) -> Path:
        """Where the scorer keeps snapshots of its state."""
        return self.home / "snapshots" / stream.topics

    def scorer_status(self, stream: Stream) -> Path:
        """Where the running scorer says what it is doing."""
        return self.home / "scorer" / f"{stream.topics}.json"

    def work_folder(self, stream: Stream, stage: str) -> Path:
        """Where a stage keeps what it may resume from."""
        return self.home / "work" / stream.topics / stage

    def _client_options(self) -> dict[str, Any]:
        password = self.sasl_password.get_secret_value() if self.sasl_password else None
        if self.sasl_password_file:
            password = self.sasl_password_file.read_text().strip()
        options = {
            "security_protocol": self.security_protocol,
            "sasl_mechanism": self.sasl_mechanism,
            "sasl_plain_username": self.sasl_username,
            "sasl_plain_password": password,
            "ssl_cafile": str(self.ssl_cafile) if self.ssl_cafile else None,
        }
        return {name: value for name, value in options.items() if value is not None}
