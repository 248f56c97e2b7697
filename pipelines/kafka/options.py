"""The options of a client and their valid combinations; every adapter names them alike."""

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pipelines.errors import LoginError

PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")


def check_options(options: Mapping[str, Any], *, known: Collection[str], mechanisms: Collection[str]) -> None:
    """Check security_protocol, sasl_* and ssl_*.

    Args:
        known: names of the options that the adapter understands.
        mechanisms: SASL mechanisms that the adapter supports.

    Raises:
        LoginError: an option is unknown, missing or unusable.
    """
    _check_names(options, known)
    protocol = options.get("security_protocol", "PLAINTEXT")
    if protocol not in PROTOCOLS:
        raise LoginError(f"KAFKA_SECURITY_PROTOCOL is {protocol!r}; it must be one of {', '.join(PROTOCOLS)}")
    _check_all_are_used(options, protocol)
    if protocol.startswith("SASL"):
        _check_login(options, protocol, mechanisms)
    file = options.get("ssl_cafile")
    if file is not None and not Path(file).is_file():
        raise LoginError(f"KAFKA_SSL_CAFILE is {file}, which is not a file")


def _check_names(options: Mapping[str, Any], known: Collection[str]) -> None:
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise LoginError(
                f"{name} is not an option of the Kafka client" + (f"; did you mean {near[0]}?" if near else "")
            )


def _check_all_are_used(options: Mapping[str, Any], protocol: str) -> None:
    for prefix, wanted in (("sasl_", "SASL"), ("ssl_", "SSL")):
        unused = [name for name in options if name.startswith(prefix)]
        if unused and wanted not in protocol.split("_"):
            variable = f"KAFKA_{unused[0].replace('sasl_plain', 'sasl').upper()}"
            raise LoginError(
                f"{variable} is set, but KAFKA_SECURITY_PROTOCOL is {protocol}, which does not use it; set a protocol "
                f"with {wanted}"
            )


def _check_login(options: Mapping[str, Any], protocol: str, mechanisms: Collection[str]) -> None:
    mechanism = str(options.get("sasl_mechanism"))
    if mechanism not in mechanisms:
        names = ", ".join(sorted(mechanisms))
        raise LoginError(f"KAFKA_SASL_MECHANISM is {mechanism}; with {protocol} it must be one of {names}")
    if mechanism == "PLAIN" or mechanism.startswith("SCRAM"):
        for name in ("username", "password"):
            if not options.get(f"sasl_plain_{name}"):
                raise LoginError(f"KAFKA_SASL_{name.upper()} is missing; {mechanism} needs it")
