"""Build the ONNX graphs of networks and trees node by node, without tracing or an exporter."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.net.encoder import Encoder
from models.net.expectation import FLOOR, SPREAD, Expectation

OPSET, IR_VERSION = 17, 9
CELLS = ("values", "present", "codes")
BELOW = -1e9  # all bins


@dataclass(frozen=True)
class Slice:
    """The weights of an encoder that some of its outputs need.

    Args:
        read: numeric columns that are read, **shape (r,)**.
        reads_all: whether these are all.
        outputs: the outputs, ascending, **shape (o,)**.
        left, slope: of the bins, **shape (r, n_bins)**.
        pieces, missing, codes, bias: first layer and linear skip, last axis ``width + o``.
        layers, out: weights and biases of the other layers.
        width: units of a hidden layer.
    """

    read: NDArray[np.int64]
    reads_all: bool
    outputs: NDArray[np.int64]
    left: NDArray[np.float32]
    slope: NDArray[np.float32]
    pieces: NDArray[np.float32]
    missing: NDArray[np.float32]
    codes: list[NDArray[np.float32]]
    bias: NDArray[np.float32]
    layers: list[tuple[NDArray[np.float32], NDArray[np.float32]]]
    out: tuple[NDArray[np.float32], NDArray[np.float32]]
    width: int

    @classmethod
    def of(cls, encoder: Encoder, read: NDArray[np.int64], outputs: NDArray[np.int64]) -> Self:
        joint = np.concatenate([np.arange(encoder.width), encoder.width + outputs])
        left, slope = _array(encoder.left), _array(encoder.slope)
        pieces = _array(encoder.pieces_weight).reshape(*left.shape, -1)
        missing = _array(encoder.missing_weight)
        never = np.setdiff1d(np.arange(len(left)), read)  # hidden in every row
        return cls(
            read=read,
            reads_all=len(read) == len(left),
            outputs=outputs,
            left=left[read],
            slope=slope[read],
            pieces=pieces[read][:, :, joint],
            missing=missing[read][:, joint],
            codes=[_array(weight)[:, joint] for weight in encoder.code_weights],
            bias=(_array(encoder.bias) + missing[never].sum(axis=0))[joint],
            layers=[(_array(layer.weight), _array(layer.bias)) for layer in encoder.layers],
            out=(_array(encoder.out.weight)[outputs], _array(encoder.out.bias)[outputs]),
            width=encoder.width,
        )


def _read(net: Expectation) -> NDArray[np.int64]:
    return np.flatnonzero(net.readable.cpu().numpy() > 0)


def _array(tensor: Any) -> NDArray[Any]:
    return np.asarray(tensor.detach().cpu().numpy())


class Nodes:
    """Collects nodes and weights. Each method adds an operation and returns the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, array: NDArray[np.generic] | list[int]) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def number(self, value: float) -> str:
        return self.weight(np.array(value, np.float32))

    def columns(self, of: str, start: int, stop: int) -> str:
        start_stop_axis = [self.weight(np.array([k], np.int64)) for k in (start, stop, 1)]
        return self.op("Slice", of, *start_stop_axis)

    def column(self, of: str, index: int) -> str:
        return self.op("Gather", of, self.weight(np.array(index, np.int64)), axis=1)

    def total(self, parts: list[str]) -> str:
        return parts[0] if len(parts) == 1 else self.op("Sum", *parts)

    def pick(self, of: str, at: NDArray[np.integer]) -> str:
        return self.op("Gather", of, self.weight(at.astype(np.int64)), axis=1)

    def read(self, part: Slice, of: str) -> str:
        return of if part.reads_all else self.pick(of, part.read)

    # the methods of models/net/encoder.py

    def pieces(self, part: Slice, values: str, present: str) -> str:
        """Pieces, flat, (n, r * n_bins). A cell that is not present lies below all bins, so that its pieces are 0."""
        zero, one, below = (self.weight(np.array(number, part.left.dtype)) for number in (0, 1, BELOW))
        seen = self.op("Where", self.op("Greater", present, zero), values, below)
        r, n_bins = part.left.shape
        each = np.repeat(np.eye(r, dtype=part.left.dtype), n_bins, axis=1)  # a product is faster than broadcasting
        steps = self.op("Sub", self.op("MatMul", seen, self.weight(each)), self.weight(part.left.ravel()))
        return self.op("Clip", self.op("Mul", steps, self.weight(part.slope.ravel())), zero, one)

    def pieces_of(self, part: Slice, pieces: str, at: NDArray[np.int64]) -> str:
        shape = self.weight(np.array([-1, *part.left.shape], np.int64))
        return self.op("Flatten", self.pick(self.op("Reshape", pieces, shape), at), axis=1)

    def first(self, part: Slice, shown: str, present: str, codes: str) -> str:
        absent = self.op("Sub", self.weight(np.array(1, part.left.dtype)), present)
        parts = [
            self.op("MatMul", shown, self.weight(part.pieces.reshape(-1, part.pieces.shape[2]))),
            self.op("MatMul", absent, self.weight(part.missing)),
        ]
        for j, weight in enumerate(part.codes):
            parts.append(self.op("Gather", self.weight(weight), self.column(codes, j), axis=0))
        return self.op("Add", self.total(parts), self.weight(part.bias))

    def rest(self, part: Slice, joint: str) -> str:
        hidden = self.op("Relu", self.columns(joint, 0, part.width))
        for weight, bias in part.layers:
            step = self.op("Gemm", hidden, self.weight(weight), self.weight(bias), transB=1)
            hidden = self.op("Add", hidden, self.op("Relu", step))
        weight, bias = part.out
        out = self.op("Gemm", hidden, self.weight(weight), self.weight(bias), transB=1)
        return self.op("Add", out, self.columns(joint, part.width, part.width + len(part.outputs)))

    # the methods of models/net/expectation.py

    def surprises(self, net: Expectation, values: str, present: str, codes: str, used: Collection[int]) -> str:
        """Surprises, (n, n_fields). Those of fields that are not used are missing."""
        trusted = [net.fields[j].target for j in used if net.trust[net.fields[j].target] > 0]
        part = Slice.of(net.encoder, _read(net), _array(net.outputs_of(*trusted)))
        read = self.read(part, present)
        pieces = self.pieces(part, self.read(part, values), read)
        joint = self.first(part, pieces, read, codes)
        found: list[list[str]] = [[] for _ in net.fields]
        for view in net.views:
            out = ""
            if view[trusted].any():
                out = self.rest(part, self.hide(net, part, joint, pieces, read, codes, np.flatnonzero(view)))
            for j, field in enumerate(net.fields):
                if j in used and view[field.target]:
                    found[j].append(self.nats(net, part, field.target, values, present, codes, out))
        absent = self.op("Add", self.op("Mul", self.column(present, 0), self.number(0.0)), self.number(np.nan))
        means = [absent if not nats else nats[0] if len(nats) == 1 else self.op("Mean", *nats) for nats in found]
        axis = self.weight(np.array([1], np.int64))
        return self.op("Concat", *[self.op("Unsqueeze", mean, axis) for mean in means], axis=1)

    def hide(
        self,
        net: Expectation,
        part: Slice,
        joint: str,
        pieces: str,
        read: str,
        codes: str,
        hidden: NDArray[np.int64],
    ) -> str:
        at = np.flatnonzero(np.isin(part.read, hidden))
        if len(at):
            shown = self.pick(read, at)
            weight = part.pieces[at].reshape(-1, part.pieces.shape[2])
            gone = self.op("MatMul", self.pieces_of(part, pieces, at), self.weight(weight))
            joint = self.op("Sub", joint, gone)
            joint = self.op("Add", joint, self.op("MatMul", shown, self.weight(part.missing[at])))
        for j in (int(i) - net.d_num for i in hidden if i >= net.d_num):
            weight = part.codes[j]
            gone = self.op("Gather", self.weight(weight - weight[:1]), self.column(codes, j), axis=0)
            joint = self.op("Sub", joint, gone)
        return joint

    def nats(self, net: Expectation, part: Slice, target: int, values: str, present: str, codes: str, out: str) -> str:
        at = np.searchsorted(part.outputs, _array(net.outputs_of(target)))
        if target < net.d_num:
            z = self.column(values, target)
            if net.trust[target] > 0:
                spread = self.op("Clip", self.column(out, int(at[1])), self.number(-SPREAD), self.number(SPREAD))
                away = self.op("Sub", z, self.column(out, int(at[0])))
                z = self.op("Mul", away, self.op("Exp", self.op("Neg", spread)))
            half = self.op("Mul", self.op("Mul", z, z), self.number(0.5))
            shown = self.op("Greater", self.column(present, target), self.number(0.0))
            return self.op("Where", shown, half, self.number(np.nan))
        code = self.column(codes, target - net.d_num)
        if net.trust[target] > 0:
            p = self.op("Softmax", self.columns(out, int(at[0]), int(at[-1]) + 1), axis=1)
            which = self.op("Unsqueeze", code, self.weight(np.array([1], np.int64)))
            chosen = self.op("GatherElements", p, which, axis=1)
            chosen = self.op("Squeeze", chosen, self.weight(np.array([1], np.int64)))
        else:
            marginal = np.exp(_array(net.marginal)[net.code_slice(target)])
            chosen = self.op("Gather", self.weight(marginal / marginal.sum()), code, axis=0)
        floored = self.op("Add", self.op("Mul", chosen, self.number(1 - FLOOR)), self.number(FLOOR / len(at)))
        seen = self.op("Greater", code, self.weight(np.array(0, np.int64)))
        return self.op("Where", seen, self.op("Neg", self.op("Log", floored)), self.number(np.nan))


def scorer_graph(net: Expectation, used: Collection[int]) -> bytes:
    """Serialised ONNX model: ``values, present, codes -> nats (n, n_fields), NaN = missing or not used``.

    Only the part of the network that the surprises of the used fields need is in it.
    """
    g = Nodes()
    nats = g.surprises(net, *CELLS, used)
    return save(g, cells_of(net.d_num, len(net.n_codes)), {"nats": (nats, 2)})


def expectation_graph(net: Expectation) -> bytes:
    """Serialised ONNX model: ``values, present, codes -> mean, spread (n, d_num), logits (n, all codes)``."""
    g = Nodes()
    d, n_codes = net.d_num, sum(net.n_codes)
    part = Slice.of(net.encoder, _read(net), np.arange(2 * d + n_codes))
    read = g.read(part, "present")
    pieces = g.pieces(part, g.read(part, "values"), read)
    out = g.rest(part, g.first(part, pieces, read, "codes"))
    trust = _array(net.trust)
    mean = g.op("Mul", g.columns(out, 0, d), g.weight(trust[:d]))
    spread = g.op("Clip", g.columns(out, d, 2 * d), g.number(-SPREAD), g.number(SPREAD))
    spread = g.op("Mul", spread, g.weight(trust[:d]))
    of_codes = np.repeat(trust[d:], net.n_codes)
    logits = g.op("Mul", g.columns(out, 2 * d, 2 * d + n_codes), g.weight(of_codes))
    logits = g.op("Add", logits, g.weight(_array(net.marginal) * (1 - of_codes)))
    return save(g, cells_of(d, len(net.n_codes)), {"mean": (mean, 2), "spread": (spread, 2), "logits": (logits, 2)})


def cells_of(d_num: int, d_cat: int) -> dict[str, tuple[int, int]]:
    """Type and width of each part of the cells."""
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT64)
    return {name: (kind, width) for name, kind, width in zip(CELLS, kinds, (d_num, d_num, d_cat), strict=True)}


def save(g: Nodes, inputs: dict[str, tuple[int, int]], outputs: dict[str, tuple[str, int]]) -> bytes:
    """Serialised model.

    Args:
        g: the nodes.
        inputs: type and width of each input, **shape (n, width)**.
        outputs: for each float32 output, the result that it is, and its number of axes.
    """
    for name, (source, _) in outputs.items():
        g.nodes.append(helper.make_node("Identity", [source], [name]))
    given = [helper.make_tensor_value_info(name, kind, ["n", width]) for name, (kind, width) in inputs.items()]
    results = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *[None] * (rank - 1)])
        for name, (_, rank) in outputs.items()
    ]
    graph = helper.make_graph(g.nodes, "unmask", given, results, g.weights)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
