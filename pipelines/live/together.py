"""Scores rows of several lanes in one call of the model, because its cost per row falls with their number."""

import threading

import numpy as np
from numpy.typing import NDArray

from pipelines.model import Model

Numbers = NDArray[np.float64]
Hashes = NDArray[np.uint64]
Scores = NDArray[np.float32]


class _Request:
    def __init__(self, model: Model, numeric: Numbers, categorical: Hashes) -> None:
        self.model, self.numeric, self.categorical = model, numeric, categorical
        self.scores: Scores | None = None
        self.error: BaseException | None = None


class Together:
    """While one thread scores, the requests of the others gather; the next thread scores all of them at once.

    Example:
        >>> from tests.pipelines.live.live_scorer import Linear
        >>> from tests.pipelines.live.kill_stream import stream_named
        >>> model = Linear(stream_named("s"))
        >>> rows = np.zeros((3, len(model.numeric_names))), np.zeros((3, len(model.categorical_names)), np.uint64)
        >>> bool((Together().score(model, *rows) == model.score(*rows)).all())
        True
    """

    def __init__(self) -> None:
        self._turn, self._adding = threading.Lock(), threading.Lock()
        self._waiting: list[_Request] = []

    def score(self, model: Model, numeric: Numbers, categorical: Hashes) -> Scores:
        """The model's scores of rows, shape (n,); waits while another thread scores.

        Raises:
            Exception: what the model raised, for the rows of every thread that it was asked for together.
        """
        mine = _Request(model, numeric, categorical)
        with self._adding:
            self._waiting.append(mine)
        with self._turn:
            if mine.scores is None and mine.error is None:
                _answer(self._taken(model))
        if mine.error is not None:
            raise mine.error
        assert mine.scores is not None
        return mine.scores

    def _taken(self, model: Model) -> list[_Request]:
        with self._adding:
            taken = [request for request in self._waiting if request.model is model]
            self._waiting = [request for request in self._waiting if request.model is not model]
        return taken


def _answer(requests: list[_Request]) -> None:
    try:
        numeric = [request.numeric for request in requests]
        categorical = [request.categorical for request in requests]
        found = requests[0].model.score(np.concatenate(numeric), np.concatenate(categorical))
    except BaseException as error:
        for request in requests:
            request.error = error
        return
    ends = np.cumsum([len(rows) for rows in numeric])
    for request, scores in zip(requests, np.split(found, ends[:-1]), strict=True):
        request.scores = scores
