"""What ships: safetensors + ONNX + JSON under a manifest of hashes; data, never code."""

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
from models.ship.manifest import FORMAT, ArtifactError, read_files, write_files
from models.table import Column, PickedRows

if TYPE_CHECKING:
    from models.fit.finetune import TrainedModel

FILES = ("config.json", "expect.onnx", "model.onnx", "model.safetensors")
GOLDEN_TOLERANCE = 1e-4  # ten times what torch and ONNX may differ by: another processor is not a fault
N_GOLDEN = 32
MAX_ROWS = 4096  # rows a call of the runtime, so that memory is bounded
MAX_EXPLAIN_BYTES = 16 * 1024 * 1024  # of the rows that an explanation makes


def save(
    model: TrainedModel,
    folder: Path,
    *,
    lineage: Mapping[str, str],
    golden: tuple[NDArray[np.float64], NDArray[np.uint64]] | None = None,
) -> str:
    """Write a model; the manifest, the mark of completion, is written last.

    Args:
        model: fine-tuned, or label-free.
        folder: is made; files of the same names are replaced.
        lineage: where it comes from (lake version, git commit, parent run), kept in the manifest.
        golden: raw rows whose scores `load` must reproduce; by default rows drawn over the columns' ranges.

    Returns:
        The digest: sha256 of the manifest.
    """
    from models.ship.onnx_graph import expectation_graph, scorer_graph

    numeric, categorical = golden or _golden_rows(model.rules)
    arrays = {f"rules.{name}": array for name, array in model.rules.arrays().items()}
    arrays |= {f"network.{k}": v.detach().cpu().numpy().copy() for k, v in model.network.state_dict().items()}
    arrays |= {
        "golden.numeric": np.ascontiguousarray(numeric[:N_GOLDEN]),
        "golden.categorical": np.ascontiguousarray(categorical[:N_GOLDEN]),
        "golden.score": model.score(numeric[:N_GOLDEN], categorical[:N_GOLDEN]),
    }
    config = {"rules": model.rules.config(), "metrics": dict(model.metrics)}
    contents = {
        "config.json": json.dumps(config, indent=1, sort_keys=True).encode(),
        "expect.onnx": expectation_graph(model.network.expectation),
        "model.onnx": scorer_graph(model.network),
        "model.safetensors": save_safetensors(arrays),
    }
    return write_files(folder, contents, lineage=lineage)


def load(folder: Path, *, expect: str | None = None) -> ServedModel:
    """Read, check and start a model on ONNX Runtime; torch is not needed.

    Args:
        folder: as `save` wrote it.
        expect: the digest that the registry or a progress record names; None = any.

    Raises:
        ArtifactError: a file is missing, foreign, too large, or not the one that was saved (the message
            names it and both hashes); a weight is not finite; the golden rows score differently here.
    """
    digest, contents = read_files(folder, FILES, expect=expect)
    try:
        config = json.loads(contents["config.json"])
        arrays = load_safetensors(contents["model.safetensors"])
        for name, array in arrays.items():
            if array.dtype.kind == "f" and not name.startswith("golden.") and not np.isfinite(array).all():
                raise ArtifactError(f"weights must be finite, however: {name} in model.safetensors is not; save again")
        rules = Rules.of_parts(
            config["rules"],
            {k.removeprefix("rules."): v for k, v in arrays.items() if k.startswith("rules.")},
        )
        served = ServedModel(digest, rules, _session(contents["model.onnx"]), _session(contents["expect.onnx"]))
        got = served.score(arrays["golden.numeric"], arrays["golden.categorical"])
    except ArtifactError:
        raise
    except Exception as error:  # whatever a parser says of a file that has the right hash, it is not our format
        raise ArtifactError(f"the files in {folder.name} are not a model of format {FORMAT}: {error}") from error
    worst = float(np.max(np.abs(got - arrays["golden.score"]), initial=0.0))
    if not worst <= GOLDEN_TOLERANCE:
        raise ArtifactError(
            f"golden rows must score as when saved within {GOLDEN_TOLERANCE}, however: they differ "
            f"by {worst:.2g}; this machine's ONNX Runtime computes something else"
        )
    return served


@dataclass(frozen=True)
class ServedModel:
    """A model as the scorer sees it.

    Args:
        digest: sha256 of the manifest: the model's name in scores and progress records.
        rules: everything fitted.
        scorer, expectation: the networks.
    """

    digest: str
    rules: Rules
    scorer: onnxruntime.InferenceSession
    expectation: onnxruntime.InferenceSession

    @property
    def columns(self) -> tuple[Column, ...]:
        """The inputs, numeric ones first."""
        return self.rules.columns

    @property
    def threshold(self) -> float:
        """An event alerts where score > threshold."""
        return self.rules.threshold

    def score(
        self, numeric: NDArray[np.float64] | PickedRows, categorical: NDArray[np.uint64] | PickedRows
    ) -> NDArray[np.float32]:
        """Scores in [0, 1], high = anomalous; at most `MAX_ROWS` rows are read at a time.

        Args:
            numeric: raw columns, **shape (n, d_num)**, NaN = missing.
            categorical: hashes, **shape (n, d_cat)**, 0 = missing.
        """
        found = [np.zeros(0, np.float32)]
        for start in range(0, len(numeric), MAX_ROWS):
            rows = slice(start, start + MAX_ROWS)
            logit, nats = _run(self.scorer, self.rules.coding.transform(numeric[rows], categorical[rows]))
            found.append(self.rules.score(logit, nats))
        return np.concatenate(found)

    def explain(
        self, numeric: NDArray[np.float64] | PickedRows, categorical: NDArray[np.uint64] | PickedRows
    ) -> list[Explanation]:
        """Reasons, one explanation a row; meant for alerts, some 30 times dearer than a score.

        Every row becomes as many as there are groups to hide: however many rows alert, no more than about
        `MAX_EXPLAIN_BYTES` of them are made at a time.
        """
        step = max(1, MAX_EXPLAIN_BYTES // self._explain_bytes_a_row)
        found: list[Explanation] = []
        for start in range(0, len(numeric), step):
            rows = slice(start, start + step)
            found += explain(self.rules, self._expect, self.score, numeric[rows], categorical[rows])
        return found

    @property
    def _explain_bytes_a_row(self) -> int:
        """Cells, pieces, predictions and replaced rows of one row's groups."""
        coding = self.rules.coding
        numbers = coding.d_num * (coding.edges.shape[1] + 8) + 2 * sum(coding.n_codes) + 4 * len(coding.n_codes)
        return 8 * numbers * max(1, len(groups(self.rules.columns)))

    def _expect(self, cells: Cells) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        mean, spread, logits = _run(self.expectation, cells)
        return mean, spread, logits


def _run(session: onnxruntime.InferenceSession, cells: Cells) -> list[NDArray[np.float32]]:
    found: list[NDArray[np.float32]] = session.run(None, cells._asdict())
    return found


def _session(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # scale by processes; spinning threads cost more than they give
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
