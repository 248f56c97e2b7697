"""A promotion is a record of the chain and a moved alias, both or neither; a killed one is healed by the next."""

from pathlib import Path

import pytest

from flows import moves
from flows.local.servers import Servers
from flows.settings import Settings, registry_name
from models.ship import registry
from models.ship.registry import RegistryError
from pipelines.errors import BrokerError, UnmaskError
from pipelines.operate.history import History, read_history
from tests.flows.serve.cached import Home
from tests.flows.serve.test_champion import Replica

EVIDENCE = moves.evidence_digest({"floor": ["0.5", True]})


class Killed(BaseException):
    """As if the process ended here."""


@pytest.fixture
def home(kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, servers: Servers) -> Home:
    home = Home(kafka, tmp_path, monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", servers.mlflow_uri)
    home.settings = Settings()
    return home


def registered(home: Home, *names: str) -> list[tuple[str, int]]:
    """Models in the registry: digests and versions. The first one is the champion."""
    uri, name, made = home.settings.tracking_uri(), registry_name(home.stream), list[tuple[str, int]]()
    for one in names:
        digest = home.put(one)
        with registry.open_run(f"{home.stream.name}/finetune", tracking_uri=uri, run_name="r", tags={}) as run:
            folder = home.settings.model_cache / digest
            made.append((digest, registry.register(name, run, folder, digest=digest, tags={})))
    registry.set_alias(name, "champion", made[0][1], tracking_uri=uri)
    return made


def champion(home: Home) -> int:
    found = registry.version_of(registry_name(home.stream), "champion", tracking_uri=home.settings.tracking_uri())
    assert found is not None
    return found[0]


def history(home: Home) -> History:
    return read_history(home.rig.connection, home.stream)


def promote(home: Home, digest: str, version: int, *, forced: bool = False) -> None:
    moves.promote(
        home.settings, home.stream, digest, version, by="ann", why="gate", evidence=EVIDENCE, run="r1", forced=forced
    )


def test_a_promotion_is_recorded_and_obeyed_and_a_returned_model_needs_force(home: Home) -> None:
    (first, _), (second, version) = registered(home, "first", "second")
    replica = Replica(home)
    promote(home, second, version)
    assert champion(home) == version
    replica.follow(lambda: replica.used[0] == second)
    order = history(home).entries[-1].order
    assert (order.kind, order.before, order.version, order.evidence) == ("promote", first, version, EVIDENCE)
    assert (order.by, order.why, order.run, order.forced) == ("ann", "gate", "r1", False)
    for _ in range(2):
        replica.follower.look()
    assert [entry.order.kind for entry in history(home).entries] == ["follow", "promote"]  # no echo of the alias

    said = moves.return_model(home.settings, home.stream, second, by="monitor", why="few of its alerts were frauds")
    assert "is returned" in said
    assert "was returned before" in moves.return_model(home.settings, home.stream, second, by="m", why="again")
    replica.follow(lambda: replica.used[0] == first)
    assert champion(home) == 1
    with pytest.raises(UnmaskError, match="was returned by the scorers: few of its alerts were frauds"):
        promote(home, second, version)
    assert champion(home) == 1
    promote(home, second, version, forced=True)
    replica.follow(lambda: replica.used[0] == second)
    assert history(home).entries[-1].order.forced
    assert not history(home).chain.breaks
    replica.close()


def test_a_promotion_killed_after_the_alias_moved_is_healed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    (first, _), (second, version) = registered(home, "first", "second")
    replica = Replica(home)
    right = registry.set_alias

    def killed(*words: object, **more: object) -> None:
        right(*words, **more)  # type: ignore[arg-type]
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(registry, "set_alias", killed)
        with pytest.raises(Killed):
            promote(home, second, version)
    assert champion(home) == version
    assert [entry.order.kind for entry in history(home).entries] == ["follow"]
    replica.follow(lambda: replica.used[0] == second)  # by the alias, which is recorded
    promote(home, second, version)
    told = [(entry.order.kind, entry.order.digest, entry.order.by) for entry in history(home).entries]
    assert told == [("follow", first, "r"), ("follow", second, "r"), ("promote", second, "ann")]
    assert history(home).wanted_at(2**60)[0].rollback_to == first
    replica.close()


def test_without_kafka_or_mlflow_nothing_is_promoted(
    home: Home, monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    _, (second, version) = registered(home, "first", "second")
    with monkeypatch.context() as patch:
        patch.setenv("KAFKA_BOOTSTRAP_SERVERS", f"127.0.0.1:{free_port}")
        home.settings = Settings()
        with pytest.raises(BrokerError, match="no Kafka answers"):
            promote(home, second, version)
    home.settings = Settings()
    assert champion(home) == 1

    def fails(*_: object, **__: object) -> None:
        raise RegistryError("MLflow failed")

    with monkeypatch.context() as patch:
        patch.setattr(registry, "set_alias", fails)
        with pytest.raises(RegistryError, match="MLflow failed"):
            promote(home, second, version)
    assert not history(home).entries
