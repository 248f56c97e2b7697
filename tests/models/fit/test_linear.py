import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from models.cells import CellCoding
from models.fit.linear import MAX_BACKGROUND, _inputs, head_logits, linear_head, pair_head
from models.net.encoder import Encoder
from models.table import TableError
from tests.models.conftest import stream


def rows(n: int, seed: int = 0):
    table, label = stream(n, seed)
    coding = CellCoding.fit(table)
    return coding, coding.cells(table), label == 1


def test_the_inputs_are_those_of_an_encoder() -> None:
    coding, cells, _ = rows(200)
    head = Encoder(coding.edges, coding.n_codes, width=3, n_layers=0, d_out=1)
    values, present, codes = (torch.from_numpy(part) for part in cells)
    joint = head.first(head.pieces(values), present, codes) - head.bias
    weight = torch.cat([head.pieces_weight, head.missing_weight, *head.code_weights])
    np.testing.assert_allclose(_inputs(coding, cells) @ weight.detach().numpy(), joint.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("n_known", [1, 5, 50])
def test_few_frauds_do_not_harm_a_good_prior_and_many_help(n_known: int) -> None:
    coding, cells, fraud = rows(6000)
    prior = np.where(fraud, 1.0, -1.0) + 2.0 * np.random.default_rng(1).normal(size=6000)
    known = np.zeros(6000, bool)
    known[np.flatnonzero(fraud[:4000])[:n_known]] = True
    head = linear_head(coding, cells.take(slice(0, 4000)), known[:4000], prior[:4000])
    late = slice(4000, 6000)
    before = average_precision_score(fraud[late], prior[late])
    after = average_precision_score(fraud[late], prior[late] + head_logits(head, cells.take(late)))
    assert after > before - 0.01 + 0.1 * (n_known == 50)


def test_a_background_row_known_to_be_legitimate_keeps_its_weight() -> None:
    coding, cells, fraud = rows(3000)
    half = fraud & (np.arange(3000) % 2 == 0)
    prior = np.zeros(3000)
    unknown, legitimate = (
        head_logits(linear_head(coding, cells, half, prior, known=known), cells)[fraud & ~half].mean()
        for known in (None, np.ones(3000, bool))
    )
    assert unknown > legitimate


def test_pairs_learn_from_two_frauds() -> None:
    coding, cells, fraud = rows(3000)
    known = np.zeros(3000, bool)
    known[np.flatnonzero(fraud & (np.array(cells.values[:, 0]) > 2))[:2]] = True
    head = pair_head(coding, cells, known, steps=200)
    logit = head_logits(head, cells)
    assert average_precision_score(fraud, logit) > 5 * fraud.mean()
    np.testing.assert_array_equal(logit, head_logits(pair_head(coding, cells, known, steps=200), cells))


def test_both_classes_are_needed_and_the_background_is_bounded() -> None:
    coding, cells, _ = rows(100)
    for fraud in (np.zeros(100, bool), np.ones(100, bool)):
        with pytest.raises(TableError, match="at least one of each"):
            linear_head(coding, cells, fraud, np.zeros(100))
        with pytest.raises(TableError, match="at least one of each"):
            pair_head(coding, cells, fraud)
    assert MAX_BACKGROUND <= 30_000
