"""Log the report of a training to its run of MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flows import gate
from flows.review import data as data_of
from flows.review import periods, sections, training
from flows.review.alerts import Scored
from flows.review.sections import Fact, Plot, Rows, Section
from flows.review.training import Curves
from flows.training_data import TrainingData, budget_of
from models import plots
from models.fit.finetune import FinetuneConfig
from models.fit.pretrain import Pretrained
from models.ship import registry
from models.ship.artifact import ServedModel
from pipelines.contracts.messages import rfc3339
from pipelines.contracts.stream import Stream
from pipelines.lake.tables import Lake


def name_of(data: TrainingData) -> str:
    """Name of a run: what was known to it."""
    return f"as of {rfc3339(data.as_of_ms)[:16]}Z"


def grouped(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics of a fine-tuning by name; MLflow shows what is before a slash as a group.

    >>> grouped({"validation_ap": 0.5, "trees": 12.0})
    {'validation/ap': 0.5, 'training/trees': 12.0}
    """
    return {
        f"validation/{name.removeprefix('validation_')}"
        if name.startswith("validation_")
        else f"training/{name}": value
        for name, value in metrics.items()
    }


@dataclass(frozen=True)
class Trained:
    """What both reports are about.

    Args:
        run: run of MLflow, still open.
        data: events and labels of the training, and of what it held out.
        tags: of `flows.lineage`, and the seed.
    """

    run: registry.Run
    stream: Stream
    lake: Lake
    data: TrainingData
    tags: Mapping[str, str]

    def facts(self) -> list[Fact]:
        """What was learned from, in words."""
        return data_of.facts_of(self.stream, self.data, self.tags)

    def params(self, config: FinetuneConfig) -> dict[str, object]:
        """The settings of a fine-tuning as a person reads them."""
        budget = {name: value for name, value in vars(config.budget).items() if value is not None}
        words = ", ".join(f"{name} {value}" for name, value in budget.items())
        settings = {name: value for name, value in vars(config).items() if name != "maturity_ms"}
        return settings | {"budget": words, "label_maturity": data_of.maturity_words(self.stream)}

    def log_data(self) -> None:
        """Log the dataset; its description is logged too, so that also a failed run has it."""
        self.run.log_dataset(data_of.dataset_of(self.stream, self.lake, self.data), context="training")
        self.run.describe(sections.markdown(self.facts()))


def report_encoder(trained: Trained, pretrained: Pretrained, curves: Curves) -> None:
    """Log the report of a pretraining."""
    title = f"Unmask: encoder of {trained.stream.name}"
    sections.log(trained.run, title, trained.facts(), training.of_encoder(pretrained, curves))


@dataclass(frozen=True)
class Champion:
    """The model in service: its version, its tags, among them its digest and the figures of its validation."""

    version: int
    tags: Mapping[str, str]

    def figures(self) -> dict[str, float]:
        return {name: float(value) for name, value in self.tags.items() if name.startswith("validation_")}


@dataclass(frozen=True)
class Finetuned:
    """A fine-tuned model and what it was measured on.

    Args:
        served: the model as it serves.
        encoder: its encoder.
        metrics: of its training, and `periods.validation_figures`.
        figures: those of the gate.
        slices: events that were held out.
        label_curve: known frauds and average precision of trainings with fewer labels; empty: not measured.
        champion: the model in service; None: there is none.
        parent: run of the encoder.
    """

    served: ServedModel
    encoder: Pretrained
    metrics: Mapping[str, float]
    figures: gate.Figures
    slices: gate.Slices
    label_curve: Sequence[tuple[int, float]]
    champion: Champion | None
    parent: registry.FoundRun

    @property
    def has_truth(self) -> bool:
        """Whether some held-out events are known to be fraud."""
        return self.figures.frauds > 0


def report_model(trained: Trained, found: Finetuned) -> None:
    """Log the report of a fine-tuning."""
    data, stream = trained.data, trained.stream
    chosen = np.flatnonzero(found.slices.labelled if found.has_truth else found.slices.newest)
    label = data.label[chosen] if found.has_truth else None
    scored = Scored.of(found.served, data.table.take(chosen), data.event_id.gather(chosen), label)
    shown = training.of_model(stream, scored, budget_of(stream))
    if found.has_truth:
        shown.insert(1, _comparison(found.figures))
        if found.label_curve:
            shown.insert(2, _label_curve(found))
    shown += _later(trained, found, chosen, scored)
    sections.log(trained.run, f"Unmask: model of {stream.name}", _facts(trained, found), shown)


def describe_model(trained: Trained, found: Finetuned, name: str, version: int, words: str) -> None:
    """Describe the run of a fine-tuning, with links to its encoder and its version."""
    uri = trained.run.tracking_uri
    links = f"[Version {version} of {name}]({registry.version_url(name, version, tracking_uri=uri)})"
    links += f" · [encoder's run]({found.parent.url})"
    trained.run.describe(sections.markdown(_facts(trained, found), [words, links]))


def _facts(trained: Trained, found: Finetuned) -> list[Fact]:
    held_out = trained.data.table.time_ms[found.slices.labelled if found.has_truth else found.slices.newest]
    first, last = data_of.when(held_out[[0, -1]])
    return [
        *trained.facts(),
        ("held out for the gate", f"{len(held_out):,} events from {first} to {last}"),
        ("encoder", f"run {found.parent.run_id}"),
        (
            "threshold",
            f"{found.served.threshold:.6g}: {found.figures.alert_rate:.3%} of the newest events raise an alert",
        ),
        ("model", found.served.digest[:12]),
    ]


def _comparison(figures: gate.Figures) -> Section:
    head = ("scorer", "its average precision", "this model on the same events", "frauds")
    rows = [
        (name.replace("_", " "), f"{one.theirs:.4f}", f"{one.ours:.4f}", f"{one.frauds:,}")
        for name, one in figures.comparisons.items()
    ]
    return Section("Beside other scorers", tables=[Rows("comparison", head, rows)])


def _label_curve(found: Finetuned) -> Section:
    free = found.figures.comparisons["label_free"]
    points = [*found.label_curve, (int(found.metrics["frauds"]), free.ours)]
    words = "Each point is a training with the labels of some entities only, measured on the held-out events."
    return Section(
        "What labels give",
        [words],
        plots=[Plot("label_efficiency", plots.label_efficiency(points, label_free=free.theirs))],
    )


def _later(trained: Trained, found: Finetuned, chosen: NDArray[np.int64], scored: Scored) -> list[Section]:
    """Validation beside the held-out events, and that of the champion beside what it found in service."""
    data, stream, later = trained.data, trained.stream, []
    ours = periods.validation(found.metrics)
    held_out = periods.period("on held-out events", data, chosen, scored.score, found.encoder) if ours else None
    if held_out:
        shares = (found.metrics.get(periods.KNOWN_FRAUD), periods.known_fraud_share(data, chosen))
        title = "Validation beside held-out events"
        later.append(periods.section(stream, "validation_held_out", [*ours, held_out], title=title, shares=shares))
    if found.champion is None:
        return later
    figures = found.champion.figures()
    live = periods.live_of(trained.lake, stream, data, digest=found.champion.tags.get("digest", ""))
    theirs = periods.validation(figures)
    service = periods.period("live", data, live.rows, live.score, found.encoder) if theirs else None
    if service:
        shares = (figures.get(periods.KNOWN_FRAUD), periods.known_fraud_share(data, live.rows))
        title = f"The champion (version {found.champion.version}): validation beside live"
        later.append(periods.section(stream, "validation_live", [*theirs, service], title=title, shares=shares))
        trained.run.log_metrics({"live/champion_average_precision": service.average_precision})
    return later
