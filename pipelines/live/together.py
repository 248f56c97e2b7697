"""Scores and explains rows of several lanes in one call of the model: its cost per row falls with their number."""

import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipelines.model import Explained, Model

Numbers = NDArray[np.float64]
Hashes = NDArray[np.uint64]
Scores = NDArray[np.float32]
Answer = TypeVar("Answer")


class _Request(Generic[Answer]):
    def __init__(self, model: Model, numeric: Numbers, categorical: Hashes) -> None:
        self.model, self.numeric, self.categorical = model, numeric, categorical
        self.answer: Answer | None = None
        self.error: BaseException | None = None


class _Gathered(Generic[Answer]):
    """While one thread calls, the requests of the others gather; the next thread answers all of them at once."""

    def __init__(self, call: Callable[[Model, Numbers, Hashes], Answer]) -> None:
        self._call = call
        self._turn, self._adding = threading.Lock(), threading.Lock()
        self._waiting: list[_Request[Answer]] = []

    def ask(self, model: Model, numeric: Numbers, categorical: Hashes) -> Answer:
        mine = _Request[Answer](model, numeric, categorical)
        with self._adding:
            self._waiting.append(mine)
        with self._turn:
            if mine.answer is None and mine.error is None:
                self._answer(self._taken(model))
        if mine.error is not None:
            raise mine.error
        assert mine.answer is not None
        return mine.answer

    def _taken(self, model: Model) -> list[_Request[Answer]]:
        with self._adding:
            taken = [request for request in self._waiting if request.model is model]
            self._waiting = [request for request in self._waiting if request.model is not model]
        return taken

    def _answer(self, requests: list[_Request[Answer]]) -> None:
        try:
            numeric = [request.numeric for request in requests]
            categorical = [request.categorical for request in requests]
            found: Any = self._call(requests[0].model, np.concatenate(numeric), np.concatenate(categorical))
        except BaseException as error:
            for request in requests:
                request.error = error
            return
        begin = 0
        for request in requests:
            end = begin + len(request.numeric)
            request.answer = found[begin:end]
            begin = end


class Together:
    """While one thread asks the model, the requests of the others gather, and are then answered in one call.

    Example:
        >>> from tests.pipelines.live.live_scorer import Linear
        >>> from tests.pipelines.live.kill_stream import stream_named
        >>> model = Linear(stream_named("s"))
        >>> rows = np.zeros((3, len(model.numeric_names))), np.zeros((3, len(model.categorical_names)), np.uint64)
        >>> bool((Together().score(model, *rows) == model.score(*rows)).all())
        True
    """

    def __init__(self) -> None:
        self._scores = _Gathered[Scores](lambda model, *rows: model.score(*rows))
        self._explanations = _Gathered[Sequence[Explained]](lambda model, *rows: model.explain(*rows))

    def score(self, model: Model, numeric: Numbers, categorical: Hashes) -> Scores:
        """The model's scores of rows, shape (n,); waits while another thread scores.

        Raises:
            Exception: what the model raised, for the rows of every thread that it was asked for together.
        """
        return self._scores.ask(model, numeric, categorical)

    def explain(self, model: Model, numeric: Numbers, categorical: Hashes) -> Sequence[Explained]:
        """The model's explanations of rows; waits while another thread explains.

        Raises:
            Exception: as `score`.
        """
        return self._explanations.ask(model, numeric, categorical)
