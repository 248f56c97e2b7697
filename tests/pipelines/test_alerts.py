from pathlib import Path

import msgspec
import numpy as np

from models.fit.finetune import FinetuneConfig, finetune
from models.fit.pretrain import PretrainConfig, pretrain
from models.ship.artifact import load, save
from models.table import Table
from pipelines.contracts.contract import Event, EventContract, hash64, hashes_of
from pipelines.contracts.messages import RecordSource, Score
from pipelines.contracts.stream_file import parse
from pipelines.live.alert_records import alert_of, features_of

STREAM = parse("""
[stream]
name = "visits"
event_id = "id"
event_time = "at"
entities = ["user"]
[fields]
id = { type = "text" }
at = { type = "time" }
user = { type = "text" }
country = { type = "category" }
""")


def test_an_alert_names_a_category_that_the_model_never_saw_by_its_text(tmp_path: Path) -> None:
    from flows.training_data import columns_of

    n, random = 3_000, np.random.default_rng(0)
    names = {hash64(text): text for text in ("be", "de")}
    numeric = np.stack([random.integers(0, 24, n), random.integers(0, 7, n)], 1).astype(float)
    table = Table(columns_of(STREAM), numeric, random.choice(list(names), (n, 1)), np.arange(n), names)
    config = PretrainConfig(width=16, max_steps=30, min_steps=30, batch=256)
    none = np.zeros(n, bool)
    model = finetune(
        pretrain(table, config=config, seed=0), table, label=np.zeros(n, np.int8), known=none, config=FinetuneConfig(),
        seed=0,
    )  # fmt: skip
    save(model, tmp_path, lineage={})
    served = load(tmp_path)
    now_ms = 1_700_000_000_000
    raw = msgspec.json.encode({"id": "e1", "at": now_ms, "user": "u", "country": "[bold]atlantis[/bold]"})
    event = EventContract(STREAM).decode(raw, b"u", now_ms)
    assert isinstance(event, Event)
    row = np.array([[12.0, 3.0]])
    hashes = hashes_of(event.category_texts)
    (why,) = served.explain(row, hashes[None, :])
    assert [r.actual for r in why.reasons if r.field == "country"] == [f"#{hashes[0]:016x}"]
    score = Score(
        event_id="e1", score=0.9, alert=True, model="m", source=RecordSource("visits.events", 0, 7), late_ms=0,
        event_time="", arrival="", out_of_order=False, features_hash="",
    )  # fmt: skip
    alert = alert_of(
        score,
        threshold=0.5,
        entities=dict(zip(STREAM.entities, event.entity_texts, strict=True)),
        explained=why,
        features=features_of(STREAM, row[0], event.category_texts),
    )
    (reason,) = [r for r in alert.reasons if r.field == "country"]
    assert (reason.actual, reason.expected in ("be", "de")) == ("[bold]atlantis[/bold]", True)
    assert reason.surprise > 3
