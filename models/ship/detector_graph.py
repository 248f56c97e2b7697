"""The ONNX graph of a `TableDetector`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from models.cells import LIMIT, MISSING, CellCoding
from models.net.encoder import Encoder
from models.score.blend import Blend
from models.score.calibrate import TailCalibration
from models.score.outlying import TINY, Outlyingness
from models.score.trees import LEAF, Trees
from models.ship.onnx_graph import Nodes, Slice, save


class DetectorNodes(Nodes):
    """Adds the operations of a `TableDetector`."""

    # the methods of models/score/outlying.py, blend.py and calibrate.py

    def terms(self, fitted: Outlyingness, values: str, present: str, codes: str) -> str:
        """The terms (n, 4), float64: in float32 the distance to a near row would be cancellation."""
        x, read = self.numbers(fitted, values, present, codes)
        linear = self.op("Div", self.op("Sub", x, self.weight(fitted.center[0])), self.weight(fitted.deviation))
        far = self.op("Sub", x, self.weight(fitted.center[1]))
        size = self.op("Abs", far)
        root = self.op("Sqrt", self.op("Add", self.op("Mul", size, size), self.double(1.0)))
        logarithmic = self.op("Mul", self.op("Sign", far), self.op("Log", self.op("Add", size, root)))
        nats = self.op("Mul", self.interp(x, fitted.knots, fitted.tails), read)
        one = self.weight(np.array([1], np.int64))
        terms = [
            *(
                self.distance(self.op("Mul", rows, read), near, int(fitted.n_near))
                for rows, near in zip((linear, logarithmic), fitted.near, strict=True)
            ),
            self.op("ReduceSum", nats, one, keepdims=1),
            self.op("ReduceMax", nats, axes=[1], keepdims=1),
        ]
        joint = self.op("Concat", *terms, axis=1)
        last = self.weight(np.maximum(fitted.term_knots[:, -1], TINY))
        beyond = self.op("Log", self.op("Max", self.op("Div", joint, last), self.double(1.0)))
        return self.op("Add", self.interp(joint, fitted.term_knots, fitted.term_nats), beyond)

    def numbers(self, fitted: Outlyingness, values: str, present: str, codes: str) -> tuple[str, str]:
        x, shown = ([self.op("Cast", part, to=TensorProto.DOUBLE)] for part in (values, present))
        for j, nats in enumerate(fitted.code_nats):
            one = self.weight(np.array([1], np.int64))
            code = self.column(codes, j)
            x.append(self.op("Unsqueeze", self.op("Gather", self.weight(nats), code, axis=0), one))
            seen = self.op("Greater", code, self.weight(np.array(MISSING, np.int64)))
            shown.append(self.op("Unsqueeze", self.op("Cast", seen, to=TensorProto.DOUBLE), one))
        read = self.op("Mul", self.op("Concat", *shown, axis=1), self.weight(fitted.use))
        return self.op("Concat", *x, axis=1), read

    def interp(self, x: str, knots: NDArray[np.float64], nats: NDArray[np.float64]) -> str:
        """``np.interp`` of each column, (n, d), with knots and values (d, k)."""
        width, rise = np.diff(knots, axis=1), np.diff(nats, axis=1)
        slope = np.divide(1.0, width, out=np.zeros_like(width), where=width > 0)
        wide = self.op("Unsqueeze", x, self.weight(np.array([2], np.int64)))
        steps = self.op("Mul", self.op("Sub", wide, self.weight(knots[:, :-1])), self.weight(slope))
        share = self.op("Mul", self.op("Clip", steps, self.double(0.0), self.double(1.0)), self.weight(rise))
        total = self.op("ReduceSum", share, self.weight(np.array([2], np.int64)), keepdims=0)
        return self.op("Add", total, self.weight(nats[:, 0]))

    def distance(self, rows: str, near: NDArray[np.float64], n_near: int) -> str:
        """Mean distance to the nearest rows of each sample, averaged over the samples, (n, 1)."""
        n_samples, n_rows, d = near.shape
        products = self.op("MatMul", rows, self.weight(-2 * near.reshape(-1, d).T))
        square = self.op("Add", products, self.weight((near**2).sum(axis=2).ravel()))
        square = self.op("Reshape", square, self.weight(np.array([-1, n_samples, n_rows], np.int64)))
        nearest = f"{square}_nearest"
        count = self.weight(np.array([n_near], np.int64))
        self.nodes.append(
            helper.make_node("TopK", [square, count], [nearest, f"{nearest}_rows"], axis=2, largest=0, sorted=0)
        )
        own = self.op("ReduceSum", self.op("Mul", rows, rows), self.weight(np.array([1], np.int64)), keepdims=1)
        own = self.op("Unsqueeze", own, self.weight(np.array([2], np.int64)))
        apart = self.op("Sqrt", self.op("Max", self.op("Add", nearest, own), self.double(0.0)))
        return self.op("ReduceMean", self.op("Flatten", apart, axis=1), axes=[1], keepdims=1)

    def blend(self, fitted: Blend, scores: str) -> str:
        """The blended score (n,) of the heads' scores (n, n_heads), both float64."""
        beyond = self.op("Max", self.op("Sub", scores, self.weight(fitted.knots[:, -1])), self.double(0.0))
        nats = self.interp(scores, fitted.knots, fitted.nats)
        nats = self.op("Add", nats, self.op("Mul", beyond, self.weight(fitted.slope)))
        return self.op("MatMul", nats, self.weight(fitted.weight))

    def rank(self, fitted: TailCalibration, nats: str) -> str:
        """The calibrated score (n,) of nats (n,), both float64."""
        one = self.weight(np.array([1], np.int64))
        knots, tail = fitted.knots[None], np.log(fitted.tail)[None]
        log_tail = self.op("Squeeze", self.interp(self.op("Unsqueeze", nats, one), knots, tail), one)
        last = self.double(max(abs(fitted.knots[-1]), 1e-9))
        beyond = self.op("Max", self.op("Sub", nats, self.double(fitted.knots[-1])), self.double(0.0))
        share = self.op("Div", last, self.op("Add", last, beyond))
        return self.op("Sub", self.double(1.0), self.op("Mul", self.op("Exp", log_tail), share))

    # the methods of models/cells.py and fit/linear.py

    def cells(self, coding: CellCoding, rows: str) -> tuple[str, str]:
        """Values and presence of numeric columns, float32, (n, d), from raw rows, float64."""
        missing = self.op("Or", self.op("IsNaN", rows), self.op("IsInf", rows))
        shown = self.op("Where", missing, self.weight(coding.center), rows)
        scaled = self.op("Div", self.op("Sub", shown, self.weight(coding.center)), self.weight(coding.scale))
        scaled = self.op("Clip", scaled, self.double(-LIMIT), self.double(LIMIT))
        return self.single(scaled), self.single(self.op("Not", missing))

    def head(self, encoder: Encoder, values: str, present: str) -> str:
        """The logits (n,) of a head without categorical columns, float64."""
        part = Slice.of(encoder, np.arange(len(encoder.left)), np.array([0]))
        values, present = self.wide(values), self.wide(present)
        pieces = self.pieces(part, values, present)
        return self.column(self.rest(part, self.first(part, pieces, present, "")), 0)

    def double(self, value: float) -> str:
        return self.weight(np.array(value, np.float64))

    def single(self, of: str) -> str:
        return self.op("Cast", of, to=TensorProto.FLOAT)

    def wide(self, of: str) -> str:
        return self.op("Cast", of, to=TensorProto.DOUBLE)

    def heads(
        self,
        encoders: Sequence[Encoder],
        forests: Sequence[Trees],
        blend: Blend,
        *,
        values: str,
        present: str,
        terms: str,
        prior: str,
        free: str,
    ) -> str:
        """The blended nats (n,) of the heads that labels add; see `detector_graph`."""
        always = self.op("Expand", self.weight(np.ones(1, np.float32)), self.op("Shape", terms))
        beside = [self.op("Concat", values, self.single(terms), axis=1)]
        beside.append(self.op("Concat", present, always, axis=1))
        logits = [self.head(encoder, values, present) for encoder in encoders]
        if logits:
            logits[0] = self.op("Add", logits[0], prior)
        inputs = (values, present), tuple(beside)
        trees = [self.wide(self.trees(forest, *inputs[i % 2])) for i, forest in enumerate(forests)]
        mean = self.op("Div", self.total(trees), self.double(float(len(trees))))
        one = self.weight(np.array([1], np.int64))
        scores = [*logits, mean, free]
        return self.blend(blend, self.op("Concat", *(self.op("Unsqueeze", each, one) for each in scores), axis=1))

    # the methods of models/score/trees.py

    def trees(self, trees: Trees, values: str, present: str, codes: str = "") -> str:
        missing = self.number(np.nan)
        x = self.op("Where", self.op("Greater", present, self.number(0.0)), values, missing)
        if len(trees.choices):
            codes = self.op("Gather", codes, self.weight(trees.choices[:, 0]), axis=1)
            chosen = self.op("Cast", self.op("Equal", codes, self.weight(trees.choices[:, 1])), to=TensorProto.FLOAT)
            unknown = self.op("Equal", codes, self.weight(np.array(MISSING, np.int64)))
            x = self.op("Concat", x, self.op("Where", unknown, missing, chosen), axis=1)
        if len(trees.feature) == 0:  # an ensemble without trees is not allowed
            first = self.op("Cast", self.op("IsNaN", self.column(x, 0)), to=TensorProto.FLOAT)
            return self.op("Mul", first, self.number(0.0))
        tree, node = np.nonzero(np.ones_like(trees.feature))
        inner = trees.feature[tree, node] != LEAF
        leaves = ~inner
        found = self.op(
            "TreeEnsembleRegressor",
            x,
            domain="ai.onnx.ml",
            n_targets=1,
            nodes_treeids=tree.tolist(),
            nodes_nodeids=node.tolist(),
            nodes_modes=np.where(inner, "BRANCH_LT", "LEAF").tolist(),
            nodes_featureids=np.where(inner, trees.feature[tree, node], 0).tolist(),
            nodes_values=trees.split[tree, node].tolist(),
            nodes_truenodeids=np.where(inner, trees.left[tree, node], 0).tolist(),
            nodes_falsenodeids=np.where(inner, trees.right[tree, node], 0).tolist(),
            nodes_missing_value_tracks_true=trees.missing_left[tree, node].astype(np.int64).tolist(),
            target_treeids=tree[leaves].tolist(),
            target_nodeids=node[leaves].tolist(),
            target_ids=[0] * int(leaves.sum()),
            target_weights=trees.value[tree, node][leaves].tolist(),
        )
        return self.column(found, 0)


def detector_graph(
    coding: CellCoding,
    free: Outlyingness,
    tail: TailCalibration,
    *,
    usual: float = 0.0,
    free_tail: TailCalibration | None = None,
    encoders: Sequence[Encoder] = (),
    forests: Sequence[Trees] = (),
    blend: Blend | None = None,
) -> bytes:
    """Serialised ONNX model of a `TableDetector`: ``X, float64 (n, d) -> score, float32 (n,)``; NaN = missing.

    Args:
        coding: turns rows into cells; there is no categorical column.
        free: the label-free score.
        tail: turns nats into the score.
        usual, free_tail: turn the nats of `free` into the log-odds that the first of the `encoders` moves.
        encoders: float64 heads with one output.
        forests: every second one also reads the terms of `free`. Their mean is one score.
        blend: of the scores of encoders, if any, forests and `free`. None: there are no labels.
    """
    g = DetectorNodes()
    values, present = g.cells(coding, "X")
    terms = g.terms(free, values, present, "")
    nats = g.op("MatMul", terms, g.weight(free.weight))
    if blend is not None and free_tail is not None:
        above = g.op("Sub", g.double(1.0), g.op("Min", g.rank(free_tail, nats), g.double(1 - 1e-6)))
        prior = g.op("Sub", g.op("Neg", g.op("Log", above)), g.double(usual))
        nats = g.heads(encoders, forests, blend, values=values, present=present, terms=terms, prior=prior, free=nats)
    score = g.single(g.rank(tail, nats))
    return save(g, {"X": (TensorProto.DOUBLE, coding.d_num)}, {"score": (score, 1)})
