import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto

from models.cells import CellCoding
from models.detector import TableDetector
from models.score.blend import Blend
from models.score.outlying import Outlyingness
from models.ship.detector_graph import DetectorNodes
from models.ship.onnx_graph import CELLS, cells_of, save
from tests.models.conftest import stream


@pytest.mark.parametrize("contaminated", [True, False])
def test_outlyingness_is_the_same_in_onnx(contaminated: bool) -> None:
    table, _ = stream(2000, seed=0)
    coding = CellCoding.fit(table)
    fitted = Outlyingness.fit(coding, coding.cells(table), contaminated=contaminated)
    numeric, categorical = np.array(table.numeric[:300]), np.array(table.categorical[:300])
    numeric[:50] *= 1e3
    numeric[50:80] = np.nan
    categorical[80:90] = 999
    cells = coding.transform(numeric, categorical)
    g = DetectorNodes()
    nats = g.op("MatMul", g.terms(fitted, *CELLS), g.weight(fitted.weight))
    graph = save(g, cells_of(coding.d_num, len(coding.n_codes)), {"nats": (g.single(nats), 1)})
    (nats,) = _session(graph).run(None, cells._asdict())
    np.testing.assert_allclose(nats, fitted.score(cells), rtol=0, atol=1e-5)


def test_a_blend_is_the_same_in_onnx() -> None:
    random = np.random.default_rng(0)
    scores = random.normal(size=(500, 3)) * [1, 1e3, 0.01]
    scores[:100, 2] = 0.0
    blend = Blend.fit(scores, np.array([1.0, 2.0, 1.0]))
    scores[0] *= 100
    g = DetectorNodes()
    graph = save(g, {"scores": (TensorProto.DOUBLE, 3)}, {"nats": (g.single(g.blend(blend, "scores")), 1)})
    np.testing.assert_allclose(_session(graph).run(None, {"scores": scores})[0], blend.score(scores), rtol=1e-6)


@pytest.mark.parametrize(
    ("n_labels", "known", "contaminated"), [(0, False, True), (0, False, False), (2, False, True), (60, True, True)]
)
def test_a_table_detector_is_the_same_in_onnx(n_labels: int, known: bool, contaminated: bool) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(1500, 5)) * [1, 10, 0.1, 1, 1]
    x[random.random(x.shape) < 0.05] = np.nan
    x[:, 4] = 3.0
    x[:60, 2] += 1.0
    y = np.full(1500, 0 if known else -1)
    y[:n_labels] = 1
    detector = TableDetector(contaminated=contaminated, n_trees=30, random_state=0).fit(x, y if n_labels else None)
    x[100:120] *= 1e6
    x[120], x[121] = np.nan, np.inf
    (score,) = _session(detector.to_onnx()).run(None, {"X": x})
    finite = x.copy()
    finite[121] = np.nan  # scikit-learn refuses infinite values; the graph takes them as missing
    np.testing.assert_allclose(score, detector.anomaly_score(finite), rtol=0, atol=1e-4)


def _session(graph: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
