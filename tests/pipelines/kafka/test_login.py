"""Logins and TLS settings that do not fit are reported by the name of what to check, whichever the adapter."""

import datetime
import ipaddress
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from flows.local import processes
from flows.local.kafka_server import Broker
from flows.settings import Settings
from pipelines.errors import BrokerError, LoginError
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Adapter, Message
from pipelines.kafka.topics import create_topics, topic_names, wait_until_up
from tests.patience import wait_until
from tests.pipelines.kafka.adapters import ADAPTERS
from tests.pipelines.kafka.link import Listener, broker_with


class Secured(NamedTuple):
    """A broker with a listener of each kind."""

    ports: Mapping[str, int]
    ca: Path

    def at(self, protocol: str) -> str:
        return f"127.0.0.1:{self.ports[protocol]}"


def self_signed(folder: Path, name: str) -> Path:
    """A key and a certificate for 127.0.0.1 in one PEM file; the certificate alone in another, which is returned."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=9))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / f"{name}.key.pem").write_bytes(private + certificate)
    (folder / f"{name}.pem").write_bytes(certificate)
    return folder / f"{name}.pem"


@pytest.fixture(scope="module")
def secured(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    if broker.kind != "kafka":
        pytest.skip("needs a broker of its own with other listeners")
    folder = tmp_path_factory.mktemp("secured")
    ca = self_signed(folder, "broker")
    ports = {name: processes.free_port() for name in ("SASL_PLAINTEXT", "SSL", "SASL_SSL")}
    listeners = {name: Listener(name, port, port) for name, port in ports.items()}
    settings = {
        "sasl.enabled.mechanisms": "PLAIN",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(ca.with_suffix(".key.pem")),
    }
    for name in ("sasl_plaintext", "sasl_ssl"):
        settings[f"listener.name.{name}.plain.sasl.jaas.config"] = (
            'org.apache.kafka.common.security.plain.PlainLoginModule required user_ann="right";'
        )
    with broker_with(folder, listeners, settings) as own:
        yield Secured({"PLAINTEXT": int(own.bootstrap.rpartition(":")[2]), **ports}, ca)


def sasl(password: str = "right", *, protocol: str = "SASL_PLAINTEXT", mechanism: str = "PLAIN") -> dict[str, str]:
    return {
        "security_protocol": protocol,
        "sasl_mechanism": mechanism,
        "sasl_plain_username": "ann",
        "sasl_plain_password": password,
    }


def test_a_login_that_fits_works_over_each_listener(secured: Secured, adapter: Adapter) -> None:
    topic = "by-login"
    connection = Connection(secured.at("PLAINTEXT"), adapter=adapter)
    create_topics(connection, {topic: 1}, config={})
    for protocol in ("SASL_PLAINTEXT", "SASL_SSL", "SSL"):
        options = sasl(protocol=protocol) if "SASL" in protocol else {"security_protocol": protocol}
        options |= {"ssl_cafile": str(secured.ca)} if "SSL" in protocol.split("_") else {}
        with Connection(secured.at(protocol), options, adapter).writer() as writer:
            writer.send(Message(topic, protocol.encode(), partition=0))
            writer.flush()


@pytest.mark.parametrize(
    ("listener", "options", "told"),
    [
        ("SASL_PLAINTEXT", sasl("wrong"), "rejects the login; check KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD"),
        ("SASL_PLAINTEXT", sasl(mechanism="SCRAM-SHA-512"), "check KAFKA_SASL_MECHANISM"),
        ("SASL_PLAINTEXT", {}, r"if it requires a login, check KAFKA_SECURITY_PROTOCOL \(now PLAINTEXT\)"),
        ("PLAINTEXT", sasl(), "does not accept a login on this port; check KAFKA_SECURITY_PROTOCOL"),
        ("SSL", {}, r"uses TLS on this port; check KAFKA_SECURITY_PROTOCOL \(now PLAINTEXT\)"),
        ("SASL_SSL", sasl(), r"uses TLS on this port; check KAFKA_SECURITY_PROTOCOL \(now SASL_PLAINTEXT\)"),
        ("PLAINTEXT", {"security_protocol": "SSL"}, r"does not use TLS on this port; .* \(now SSL\)"),
        ("SSL", {"security_protocol": "SSL"}, "a certificate that is not trusted; check KAFKA_SSL_CAFILE"),
    ],
)
def test_settings_that_do_not_fit_are_named(
    secured: Secured, adapter: Adapter, listener: str, options: dict[str, str], told: str
) -> None:
    connection = Connection(secured.at(listener), options, adapter)
    said = ""

    def is_known() -> bool:
        nonlocal said
        try:
            wait_until_up(connection, deadline_s=1.5)
        except BrokerError as error:
            said = str(error)
        return "no Kafka answers" not in said  # a busy machine connects late; what is wrong shows only then

    wait_until(is_known)
    assert re.search(told, said), said
    assert "right" not in said


def test_a_wrong_password_is_reported_wherever_a_client_is_opened(secured: Secured, adapter: Adapter) -> None:
    connection = Connection(secured.at("SASL_PLAINTEXT"), sasl("wrong"), adapter)
    for ask in (
        lambda: topic_names(connection),
        lambda: connection.reader({("t", 0): 0}),
        lambda: connection.writer(),
        lambda: connection.transactional_writer("t"),
    ):
        with pytest.raises(LoginError, match="rejects the login"):
            ask()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"sasl_plain_usename": "ann"}, "sasl_plain_usename is not an option .* did you mean sasl_plain_username"),
        ({"group_id": "x"}, "group_id is not an option"),
        ({"security_protocol": "TLS"}, "KAFKA_SECURITY_PROTOCOL is 'TLS'; it must be one of PLAINTEXT, SSL"),
        (sasl(mechanism="PLAN"), "KAFKA_SASL_MECHANISM is PLAN; with SASL_PLAINTEXT it must be one of"),
        ({"security_protocol": "SASL_SSL"}, "KAFKA_SASL_MECHANISM is None"),
        (sasl(""), "KAFKA_SASL_PASSWORD is missing; PLAIN needs it"),
        ({"sasl_plain_username": "ann"}, "KAFKA_SASL_USERNAME is set, but KAFKA_SECURITY_PROTOCOL is PLAINTEXT"),
        ({"ssl_cafile": "ca.pem"}, "KAFKA_SSL_CAFILE is set, but KAFKA_SECURITY_PROTOCOL is PLAINTEXT"),
        ({"security_protocol": "SSL", "ssl_cafile": "no/ca.pem"}, "KAFKA_SSL_CAFILE is no/ca.pem, which is not a file"),
    ],
)
def test_an_option_that_is_unknown_missing_or_of_no_use_is_an_error_at_once(
    adapter: Adapter, options: dict[str, str], told: str
) -> None:
    with pytest.raises(LoginError, match=told):
        Connection("127.0.0.1:1", options, adapter)


@pytest.mark.parametrize("client", ADAPTERS)
def test_what_the_environment_names_reaches_the_broker(
    secured: Secured, monkeypatch: pytest.MonkeyPatch, client: str
) -> None:
    for name, value in {
        "KAFKA_CLIENT": client,
        "KAFKA_BOOTSTRAP_SERVERS": secured.at("SASL_SSL"),
        "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "KAFKA_SASL_MECHANISM": "PLAIN",
        "KAFKA_SASL_USERNAME": "ann",
        "KAFKA_SASL_PASSWORD": "right",
        "KAFKA_SSL_CAFILE": str(secured.ca),
    }.items():
        monkeypatch.setenv(name, value)
    connection = Settings().connection()
    assert connection.adapter is ADAPTERS[client]
    assert isinstance(topic_names(connection), set)
    monkeypatch.setenv("KAFKA_SASL_USERNAME", "bob")
    with pytest.raises(LoginError, match="KAFKA_SASL_USERNAME"):
        topic_names(Settings().connection())
