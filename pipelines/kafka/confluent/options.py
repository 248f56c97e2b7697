"""The options of a client under librdkafka's names."""

from collections.abc import Mapping
from typing import Any

from pipelines.kafka.server import Server

MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")  # the wheels of confluent-kafka have no GSSAPI
NAMES: Mapping[str, str] = {
    "security_protocol": "security.protocol",
    "sasl_mechanism": "sasl.mechanism",
    "sasl_plain_username": "sasl.username",
    "sasl_plain_password": "sasl.password",
    "ssl_cafile": "ssl.ca.location",
    "ssl_certfile": "ssl.certificate.location",
    "ssl_keyfile": "ssl.key.location",
    "ssl_password": "ssl.key.password",
    "ssl_crlfile": "ssl.crl.location",
    "ssl_check_hostname": "ssl.endpoint.identification.algorithm",
}


def config(server: Server) -> dict[str, Any]:
    """librdkafka's configuration for a server.

    Example:
        >>> config(Server("kafka:9092", {"security_protocol": "SSL", "ssl_check_hostname": False}))
        {'bootstrap.servers': 'kafka:9092', 'security.protocol': 'SSL', 'ssl.endpoint.identification.algorithm': 'none'}
    """
    return {"bootstrap.servers": server.bootstrap} | {
        NAMES[name]: ("https" if value else "none") if name == "ssl_check_hostname" else value
        for name, value in server.options.items()
    }
