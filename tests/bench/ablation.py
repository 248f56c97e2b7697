"""What each part of Unmask gives on a stream: the whole system beside systems without one part.

    python -m tests.bench.ablation --data FOLDER --stream handbook --train-end 2018-06-30 \\
        --test-start 2018-07-01 --test-end 2018-07-31 --labels 0.01,0.05,0.25,1 --seeds 3 --out FILE

The data, the periods, the draws of labels and the report are those of `tests.bench.payments`. Without

- *pretraining*: the encoder keeps its random weights (`unmask-scratch`);
- *the prior*: trees start from the share of frauds instead of the label-free score and the rates of the entities;
- *trees*: only the prior learns from labels;
- *new statistics*: no `above`, `wmean` and `wratio`, and of the label-fed columns only `fraud_rate` and `fraud_count`;
- *last events*: no column of one of an entity's last events, where the stream has any;
- *label-fed columns*: no column knows the labels of earlier events;
- *history*: no column of an entity at all; the fields and the calendar remain.

Exit code 2 if the data or an option cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.fit.finetune import FinetuneConfig
from models.score.prior import Prior
from pipelines.contracts.stream import LAST_STATS
from tests.bench import events, payments, tables
from tests.bench.events import Data, Draw
from tests.bench.tables import BenchError, Row

NEW_STATISTICS = {"above", "wmean", "wratio", "labelled_count", "smoothed_fraud_rate"}
NEW_STATISTICS |= {"since_fraud", "since_legit", "fraud_run", "fraud_run_age"}


def renamed(rows: Sequence[Row], name: str) -> list[Row]:
    """The row of the whole system under another name."""
    return [row | {"method": name} for row in rows if row["method"] == "unmask"]


def without_prior(draw: Draw) -> list[Row]:
    """Trees that start from the share of frauds among the known labels."""
    known = draw.data.label[draw.known]
    base = float(np.log(known.sum() + 1) - np.log((known != 1).sum() + 1))

    def constant(prior: Prior, evidence: NDArray[np.float64], numeric: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.full(len(evidence), base)

    with patch.object(Prior, "log_odds", constant):
        return renamed(payments.unmask(draw, pretrained=True), "unmask-no-prior")


def without_trees(draw: Draw) -> list[Row]:
    """The prior alone."""
    config = FinetuneConfig(budget=draw.data.budget, n_trees=0)
    with patch.object(payments, "FinetuneConfig", lambda **_: config):
        return renamed(payments.unmask(draw, pretrained=True), "unmask-no-trees")


def without_columns(draw: Draw, *, data: Data, name: str) -> list[Row]:
    """The same draw of labels with fewer columns."""
    return renamed(payments.unmask(Draw(data, draw.share, draw.seed), pretrained=True), name)


def methods_of(data: Data) -> Callable[[float], Mapping[str, Callable[[Draw], list[Row]]]]:
    """The systems at a share of labels."""
    found: dict[str, Callable[[Draw], list[Row]]] = {
        "unmask": partial(payments.unmask, pretrained=True),
        "unmask-scratch": partial(payments.unmask, pretrained=False),
        "unmask-no-prior": without_prior,
        "unmask-no-trees": without_trees,
    }

    fed = {column.name for column in data.stream.columns if column.label_fed}
    features = data.stream.features
    for name, kept in (
        ("unmask-no-new-statistics", [feature for feature in features if feature.stat not in NEW_STATISTICS]),
        ("unmask-no-last-events", [feature for feature in features if feature.stat not in LAST_STATS]),
        ("unmask-no-label-fed", [feature for feature in features if feature.name not in fed]),
        ("unmask-no-history", []),
    ):
        if len(kept) == len(features):
            continue
        fewer = replace(data, stream=msgspec.structs.replace(data.stream, features=tuple(kept)))
        found[name] = partial(without_columns, data=fewer, name=name)
    return lambda share: found


@tables.reported
def main(arguments: Sequence[str] | None = None) -> Path:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    events.add_options(parser, quick="some members, 1 draw, short training")
    payments.add_draws(parser, shares=[0.01, 0.05, 0.25, 1])
    asked = parser.parse_args(arguments)
    payments.check_draws(asked)
    if 0 in asked.labels:
        raise BenchError("--labels must be above 0: without labels there is nothing to take away")
    data, files = events.data_of(asked)
    payments.run(data, files, asked.labels, 1 if asked.quick else asked.seeds, asked.out, methods_of(data))
    out: Path = asked.out
    return out


if __name__ == "__main__":
    sys.exit(main())
