import numpy as np
import onnxruntime
import pytest

from models.cells import CellCoding
from models.score.outlying import Outlyingness
from models.ship.onnx_graph import outlyingness_graph
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
