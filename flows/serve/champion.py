"""Follows the champion while a scorer runs: the alias in the registry, and the control topic."""

import logging
import threading
from collections.abc import Callable

from flows.serve.model import ColumnsByName, model_of
from flows.settings import Settings, registry_name
from models.errors import ModelError
from models.ship import registry
from pipelines.contracts.stream import Stream
from pipelines.errors import BrokerError, UnmaskError
from pipelines.live.control import Order, Orders, send_order
from pipelines.live.health import Seldom
from pipelines.live.serving import Serving

log = logging.getLogger(__name__)

LOOK_EVERY_S = 3.0


class ChampionFollower(threading.Thread):
    """Looks every few seconds, in its own thread, which model is wanted; loads it, checks it and swaps it in.

    What changed last is wanted: the alias, or an order in the control topic. A model that cannot be loaded, that has
    columns which the stream does not have, or that was returned before is refused, and the current one stays.

    Args:
        serving: where models are swapped.
        orders: read up to now; `refused` are the digests that they refuse.
    """

    def __init__(self, settings: Settings, stream: Stream, serving: Serving, orders: Orders, *, name: str) -> None:
        super().__init__(name="champion", daemon=True)
        self._settings, self._stream, self._serving, self._orders = settings, stream, serving, orders
        self._replica = name
        self._alias: str | None = serving.champion.digest
        self._told: set[str] = set(serving.refused)
        self._failed = Seldom(log)
        self._stopping = threading.Event()
        self.n_refused = 0  # models that were not swapped in

    def run(self) -> None:
        while not self._stopping.wait(LOOK_EVERY_S):
            try:
                self.look()
            except (BrokerError, ModelError, OSError) as error:
                self._failed.warning("the champion cannot be followed at the moment: %s", error)

    def stop(self) -> None:
        self._stopping.set()
        if self.is_alive():
            self.join(timeout=5)
        self._orders.close()

    def look(self) -> None:
        """Tell others of a returned model; then use the model that is wanted now."""
        self._tell_returned()
        wanted = self._alias_change()
        for order in self._orders.new():
            self._obey(order)
            wanted = order.digest
        if wanted is not None and wanted != self._serving.champion.digest:
            self._use(wanted)

    def _tell_returned(self) -> None:
        for bad, why in list(self._serving.refused.items()):
            if bad not in self._told:
                connection, used = self._settings.connection(), self._serving.champion.digest
                send_order(connection, self._stream, digest=used, why=why, by=self._replica, refused=bad)
                self._told.add(bad)

    def _alias_change(self) -> str | None:
        """The digest that the alias points to, if that has changed."""
        uri, name = self._settings.tracking_uri_or_nowhere(), registry_name(self._stream)
        if not registry.answers(uri):
            return None
        resolved = registry.resolve(name, "champion", tracking_uri=uri, cache=self._settings.model_cache)
        if not resolved.registry_answered or resolved.digest == self._alias:
            return None
        self._alias = resolved.digest
        return resolved.digest

    def _obey(self, order: Order) -> None:
        if order.refused is not None:
            self._serving.refused.setdefault(order.refused, order.why)
            self._told.add(order.refused)

    def _use(self, digest: str) -> None:
        if digest in self._serving.refused:
            return
        try:
            model = checked_model(lambda: model_of(self._settings, self._stream, digest))
        except (ModelError, UnmaskError) as error:
            self.n_refused += 1
            log.error("model %s is not used, %s stays: %s", digest[:12], self._serving.champion.digest[:12], error)
            return
        before = self._serving.champion.digest
        self._serving.swap(model)
        log.info("model %s is used instead of %s", digest[:12], before[:12])


def checked_model(load: Callable[[], ColumnsByName]) -> ColumnsByName:
    """A loaded model, if the stream has all of its columns.

    Raises:
        ModelError: it does not: the model is one of another stream.
    """
    model = load()
    if model.missing:
        raise ModelError(f"it has columns that the stream does not have: {', '.join(model.missing[:5])}")
    return model
