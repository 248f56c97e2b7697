"""A challenger ordered into shadow, and the report that compares it with the champion."""

import numpy as np
import pytest

from flows.serve.metrics import ScorerMetrics
from flows.serve.monitor import Monitor
from flows.serve.orders import Operator
from flows.serve.shadow_report import shadow_report
from pipelines.errors import UnmaskError
from pipelines.kafka import topics
from pipelines.kafka.topics import KEEP_FOR_EVER
from pipelines.live.metrics import Published
from tests.flows.serve.cached import Home
from tests.flows.serve.test_champion import Replica
from tests.patience import wait_until
from tests.pipelines.live.rig import N_PARTITIONS, running


def test_a_challenger_is_ordered_into_shadow_compared_and_made_champion(home: Home) -> None:
    ann = Operator(home.settings, home.stream, by="ann")
    champion, challenger = home.put("champion", threshold=1.0), home.put("challenger", threshold=0.5)
    with pytest.raises(UnmaskError, match=r"shadow does not exist; run `unmask topics create`"):
        ann.shadow(challenger, why="next month's")
    topics.create_topics(home.rig.connection, {home.stream.topic("shadow"): N_PARTITIONS}, config=KEEP_FOR_EVER)
    with pytest.raises(UnmaskError, match="is empty; let a model score in shadow"):
        shadow_report(home.rig.connection, home.stream)
    replica, rig = Replica(home), home.rig
    shadow = replica.serving.shadow
    assert shadow is not None
    with running(rig.scorer(serving=replica.serving)):
        rig.send(300)
        rig.wait_until_out()
        ann.set_threshold(0.0, model=challenger, why="all")
        ann.shadow(challenger, why="next month's")
        replica.follow(lambda: shadow.digest == challenger)
        rig.send(500)
        rig.wait_until_out()
        wait_until(lambda: shadow.n_scored == 500, seen=lambda: shadow.n_scored)
        wait_until(
            lambda: shadow_report(rig.connection, home.stream).n_both == 500,
            seen=lambda: shadow_report(rig.connection, home.stream),
        )
        found = shadow_report(rig.connection, home.stream)
        metrics = ScorerMetrics("s", "a", Monitor(), Published(), replica.serving, lambda: 0)
        told = {(one.name, *one.labels.values()): one.value for family in metrics.collect() for one in family.samples}
        assert told["unmask_shadow_events_total", "scored"] == 500
        assert told[("unmask_threshold",)] == 1.0
        ann.use(challenger, why="as good")
        replica.follow(lambda: replica.serving.champion.digest == challenger)
        assert shadow.digest is None  # a champion needs no shadow
        ann.shadow(None, why="enough")
        ann.use(champion, why="not as good")
        replica.follow(lambda: replica.serving.champion.digest == champion)
        assert shadow.digest is None
    replica.close()
    assert (found.challenger, found.champions) == (challenger, (champion,))
    assert (found.n_both, found.n_missing, found.n_unmatched) == (500, 0, 0)
    assert found.rank_correlation == pytest.approx(1.0)  # the same network
    assert (found.both, found.only_champion) == (0, 0)
    assert found.only_challenger >= 499
    assert np.isclose(found.hours, 0, atol=0.1)
    assert any("500 events" in line for line in found.words)
