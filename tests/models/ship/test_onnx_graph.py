import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from models.cells import CellCoding
from models.score.blend import Blend
from models.score.outlying import Outlyingness
from models.ship.onnx_graph import IR_VERSION, OPSET, _Nodes, outlyingness_graph
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
    session = onnxruntime.InferenceSession(outlyingness_graph(fitted), providers=["CPUExecutionProvider"])
    (nats,) = session.run(None, cells._asdict())
    np.testing.assert_allclose(nats, fitted.score(cells), rtol=0, atol=1e-5)


def test_a_blend_is_the_same_in_onnx() -> None:
    random = np.random.default_rng(0)
    scores = random.normal(size=(500, 3)) * [1, 1e3, 0.01]
    scores[:100, 2] = 0.0
    blend = Blend.fit(scores, np.array([1.0, 2.0, 1.0]))
    scores[0] *= 100
    g = _Nodes()
    found = g.blend(blend, "scores")
    graph = helper.make_graph(
        g.nodes,
        "blend",
        [helper.make_tensor_value_info("scores", TensorProto.DOUBLE, ["n", 3])],
        [helper.make_tensor_value_info(found, TensorProto.DOUBLE, ["n"])],
        g.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"scores": scores})[0], blend.score(scores), rtol=1e-9)
