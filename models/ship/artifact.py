"""Model artifacts: safetensors, ONNX and JSON files with a manifest of hashes. They contain no code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from models.cells import Cells
from models.score.explain import Explanation, explain, groups
from models.score.rules import Rules
from models.score.trees import Trees
from models.ship.manifest import FORMAT, ArtifactError, read_files, write_files
from models.table import Column, PickedRows

if TYPE_CHECKING:
    from models.fit.finetune import TrainedModel

FILES = ("config.json", "expect.onnx", "model.onnx", "model.safetensors")
GOLDEN_TOLERANCE = 1e-4  # ten times the allowed difference of torch and ONNX: CPUs differ in rounding
N_GOLDEN = 32
MAX_ROWS = 4096  # rows per call of the runtime: bounds memory
LANES = 16  # rows that the runtime may compute at once; those left over would be rounded in another way
MAX_EXPLAIN_BYTES = 16 * 1024 * 1024  # of the rows that an explanation creates at a time


def save(
    model: TrainedModel,
    folder: Path,
    *,
    lineage: Mapping[str, str],
    golden: tuple[NDArray[np.float64], NDArray[np.uint64]] | None = None,
) -> str:
    """Write a model. The manifest is written last: it marks the folder as complete.

    Args:
        model: a fine-tuned or label-free model.
        folder: created if missing; files with the same names are replaced.
        lineage: lake version, git commit, parent run; stored in the manifest.
        golden: raw rows whose scores `load` must reproduce. By default they are drawn from the columns' ranges.

    Returns:
        The digest: SHA-256 of the manifest.
    """
    from models.ship.onnx_graph import expectation_graph, scorer_graph

    numeric, categorical = golden or _golden_rows(model.rules)
    arrays = {f"rules.{name}": array for name, array in model.rules.arrays().items()}
    arrays |= {f"trees.{name}": array for name, array in model.trees.arrays().items()}
    for name, network in (("expectation", model.expectation), ("student", model.student)):
        arrays |= {f"{name}.{k}": v.detach().cpu().numpy().copy() for k, v in network.state_dict().items()}
    arrays |= {
        "golden.numeric": np.ascontiguousarray(numeric[:N_GOLDEN]),
        "golden.categorical": np.ascontiguousarray(categorical[:N_GOLDEN]),
        "golden.score": model.score(numeric[:N_GOLDEN], categorical[:N_GOLDEN]),
    }
    config = {"rules": model.rules.config(), "metrics": dict(model.metrics)}
    contents = {
        "config.json": json.dumps(config, indent=1, sort_keys=True).encode(),
        "expect.onnx": expectation_graph(model.expectation),
        "model.onnx": scorer_graph(model.student, model.rules.evidence.surprised),
        "model.safetensors": save_safetensors(arrays),
    }
    return write_files(folder, contents, lineage=lineage)


def load(folder: Path, *, expect: str | None = None) -> ServedModel:
    """Read and check a model, and load it into ONNX Runtime. Does not need torch.

    Args:
        folder: written by `save`.
        expect: the expected digest, from the registry or a progress record; None = any.

    Raises:
        ArtifactError: a file is missing, unexpected, too large or changed (the message contains its name and both
            hashes), a weight is not finite, or the golden rows get different scores on this machine.
    """
    digest, contents = read_files(folder, FILES, expect=expect)
    try:
        config = json.loads(contents["config.json"])
        arrays = load_safetensors(contents["model.safetensors"])
        for name, array in arrays.items():
            if array.dtype.kind == "f" and not name.startswith("golden.") and not np.isfinite(array).all():
                raise ArtifactError(
                    f"{name} in model.safetensors contains values that are not finite; train the model again"
                )
        rules = Rules.of_parts(
            config["rules"],
            {k.removeprefix("rules."): v for k, v in arrays.items() if k.startswith("rules.")},
        )
        trees = Trees(**{k.removeprefix("trees."): v for k, v in arrays.items() if k.startswith("trees.")})
        sessions = (_session(contents[name]) for name in ("model.onnx", "expect.onnx"))
        served = ServedModel(digest, rules, trees, *sessions)
        got = served.score(arrays["golden.numeric"], arrays["golden.categorical"])
    except ArtifactError:
        raise
    except Exception as error:  # the hash is right, so any parser error means another format
        raise ArtifactError(f"{folder.name} does not contain a model of format {FORMAT}: {error}") from error
    worst = float(np.max(np.abs(got - arrays["golden.score"]), initial=0.0))
    if not worst <= GOLDEN_TOLERANCE:
        raise ArtifactError(
            f"scores of the reference rows differ by {worst:.2g} from those saved with the model; at most "
            f"{GOLDEN_TOLERANCE} is allowed. Check the ONNX Runtime version on this machine"
        )
    return served


@dataclass(frozen=True)
class ServedModel:
    """A model loaded for scoring.

    Args:
        digest: SHA-256 of the manifest. It identifies the model in scores and progress records.
        rules: all fitted parts that are not networks.
        trees: what labels added.
        scorer, expectation: the networks.
    """

    digest: str
    rules: Rules
    trees: Trees
    scorer: onnxruntime.InferenceSession
    expectation: onnxruntime.InferenceSession

    @property
    def columns(self) -> tuple[Column, ...]:
        """The input columns, numeric ones first."""
        return self.rules.columns

    @property
    def threshold(self) -> float:
        """An event raises an alert if score > threshold."""
        return self.rules.threshold

    @property
    def alert_rate(self) -> float | None:
        """Share of events that the alert budget allows; None if the budget does not say."""
        return self.rules.budget.rate

    def score(
        self, numeric: NDArray[np.float64] | PickedRows, categorical: NDArray[np.uint64] | PickedRows
    ) -> NDArray[np.float32]:
        """Scores in [0, 1], high = anomalous. Reads at most `MAX_ROWS` rows at a time.

        Args:
            numeric: raw columns, **shape (n, d_num)**, NaN = missing.
            categorical: hashes, **shape (n, d_cat)**, 0 = missing.
        """
        found = [np.zeros(0, np.float32)]
        for start in range(0, len(numeric), MAX_ROWS):
            rows = slice(start, start + MAX_ROWS)
            cells = self.rules.coding.transform(numeric[rows], categorical[rows])
            (nats,) = _run(self.scorer, cells)
            logit = self.trees.score(cells).astype(np.float32)
            found.append(self.rules.score(logit, nats, numeric[rows]))
        return np.concatenate(found)

    def explain(
        self, numeric: NDArray[np.float64] | PickedRows, categorical: NDArray[np.uint64] | PickedRows
    ) -> list[Explanation]:
        """Explain rows, one explanation per row. Meant for alerts: as expensive as some 100 scores.

        Each row is expanded to one row per group of columns to hide. At most about `MAX_EXPLAIN_BYTES` of these
        rows are created at a time.
        """
        step = max(1, MAX_EXPLAIN_BYTES // self._explain_bytes_a_row)
        found: list[Explanation] = []
        for start in range(0, len(numeric), step):
            rows = slice(start, start + step)
            found += explain(self.rules, self.expect, self.score, numeric[rows], categorical[rows])
        return found

    @property
    def _explain_bytes_a_row(self) -> int:
        """Memory for the cells, pieces, predictions and replaced rows of one row's groups."""
        coding = self.rules.coding
        numbers = coding.d_num * (coding.edges.shape[1] + 8) + 2 * sum(coding.n_codes) + 4 * len(coding.n_codes)
        return 8 * numbers * max(1, len(groups(self.rules.columns, self.rules.coding.context)))

    def expect(self, cells: Cells) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Mean and log deviation of the numeric columns (scaled), and logits of the categories; see `explain`."""
        mean, spread, logits = _run(self.expectation, cells)
        return mean, spread, logits


def _run(session: onnxruntime.InferenceSession, cells: Cells) -> list[NDArray[np.float32]]:
    """The outputs for some rows, bit-equal whatever other rows are in the call: they fill whole vectors."""
    n = len(cells.values)
    more = ((0, -n % LANES), (0, 0))
    found: list[NDArray[np.float32]] = session.run(None, {k: np.pad(v, more) for k, v in cells._asdict().items()})
    return [one[:n] for one in found]


def _session(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # scale by processes instead: spinning threads waste CPU time
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _golden_rows(rules: Rules) -> tuple[NDArray[np.float64], NDArray[np.uint64]]:
    random = np.random.default_rng(0)
    coding = rules.coding
    scaled = random.normal(size=(N_GOLDEN, coding.d_num)) * 2
    numeric = scaled * coding.scale + coding.center
    numeric[random.random(numeric.shape) < 0.1] = np.nan
    categorical = np.zeros((N_GOLDEN, len(coding.vocabularies)), np.uint64)
    for j, vocabulary in enumerate(coding.vocabularies):
        if len(vocabulary):
            categorical[:, j] = random.choice(np.append(vocabulary, [np.uint64(0), np.uint64(1)]), N_GOLDEN)
    return numeric, categorical
