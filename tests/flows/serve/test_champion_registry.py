"""A scorer follows the aliases in MLflow, and a rollback moves them, so that training and the next start agree."""

import pytest

from flows.local.servers import Servers
from flows.serve.orders import Operator
from flows.settings import Settings, registry_name
from models.ship import registry
from pipelines.kafka import topics
from pipelines.kafka.topics import KEEP_FOR_EVER
from tests.flows.serve.cached import Home
from tests.flows.serve.test_champion import Replica
from tests.pipelines.live.rig import N_PARTITIONS


def test_aliases_are_followed_and_a_rollback_moves_the_champion_back(
    home: Home, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics.create_topics(home.rig.connection, {home.stream.topic("shadow"): N_PARTITIONS}, config=KEEP_FOR_EVER)
    uri, name = servers.mlflow_uri, registry_name(home.stream)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    home.settings = Settings()
    digests = [home.put(f"model-{n}", threshold=0.5) for n in range(3)]
    versions = []
    for digest in digests:
        with registry.open_run(f"{home.stream.name}/finetune", tracking_uri=uri, run_name="r", tags={}) as run:
            folder = home.settings.model_cache / digest
            versions.append(registry.register(name, run, folder, digest=digest, tags={}))
    first, second, third = digests
    registry.set_alias(name, "champion", versions[0], tracking_uri=uri)
    replica, other = Replica(home, "a"), Replica(home, "b")
    assert replica.used[0] == other.used[0] == first

    registry.set_alias(name, "champion", versions[1], tracking_uri=uri)
    replica.follow(lambda: replica.used[0] == second)
    other.follow(lambda: other.used[0] == second)
    assert replica.serving.previous is not None  # it is on trial

    ann = Operator(home.settings, home.stream, by="ann")
    assert "Version 1 is the champion in MLflow" in ann.roll_back(why="alarms")
    for one in (replica, other):
        one.follow(lambda one=one: one.used[0] == first)  # type: ignore[misc]
    found = registry.version_of(name, "champion", tracking_uri=uri)
    assert found is not None
    assert found[0] == versions[0]
    for _ in range(3):  # the alias that moved back changes nothing any more
        replica.follower.look()
        other.follower.look()
    assert replica.used[0] == other.used[0] == first

    registry.set_alias(name, "challenger", versions[2], tracking_uri=uri)
    ann.shadow("challenger", why="next")
    shadow = replica.serving.shadow
    assert shadow is not None
    replica.follow(lambda: shadow.digest == third)
    registry.set_alias(name, "champion", versions[2], tracking_uri=uri)
    replica.follow(lambda: replica.used[0] == third and shadow.digest is None)
    restarted = Replica(home, "c")
    assert restarted.used[0] == third
    for one in (replica, other, restarted):
        one.close()
