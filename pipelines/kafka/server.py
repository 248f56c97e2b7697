"""The Kafka that a client talks to."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Server(NamedTuple):
    """Address of Kafka and the client options, which are the same for every adapter."""

    bootstrap: str
    options: Mapping[str, Any]

    @property
    def protocol(self) -> str:
        return str(self.options.get("security_protocol", "PLAINTEXT"))
