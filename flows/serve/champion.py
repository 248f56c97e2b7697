"""Follows, while a scorer runs, which models and threshold are wanted: the registry's aliases and the control topic."""

import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime

from flows.serve.model import ColumnsByName, champion_alias, loaded_model
from flows.settings import Settings, registry_name
from models.errors import ModelError
from models.ship import registry
from pipelines.contracts.stream import Stream
from pipelines.errors import BrokerError
from pipelines.kafka import topics
from pipelines.live.control import Order, Orders, order_of
from pipelines.live.health import Seldom
from pipelines.live.moves import give
from pipelines.live.serving import Serving
from pipelines.live.shadow import Shadow
from pipelines.live.wanted import CHALLENGER, Wanted, obey_suppression

log = logging.getLogger(__name__)

LOOK_EVERY_S = 3.0
ECHO_S = 1.0  # to wait for an order that was just sent
TRY_AGAIN_S = 60.0  # to load a model that could not be used
TRIAL_AGAIN_S = 86_400.0  # after a restart: later, the model before may be too old to compare with
MAX_LOADED = 4  # models in memory, so that going back needs neither disk nor registry

Decide = Callable[[Wanted], Order | None]


class ChampionFollower(threading.Thread):
    """Looks every few seconds, in its own thread, what is wanted; loads and checks models, and swaps them in.

    The orders in the control topic decide, in their order, so all replicas come to the same, now and after a restart.
    Where the champion alias has moved, the first replica that sees it sends an order to follow it. A model that cannot
    be loaded, or that has columns which the stream does not have, is refused, and the current one stays.

    Args:
        serving: where models are swapped.
        orders: read up to now; what they add up to is `wanted`.
        name: of this replica, in the orders that it sends.
    """

    def __init__(
        self, settings: Settings, stream: Stream, serving: Serving, orders: Orders, wanted: Wanted, *, name: str
    ) -> None:
        super().__init__(name="champion", daemon=True)
        self._settings, self._stream, self.serving, self._orders = settings, stream, serving, orders
        self.wanted, self._replica = wanted, name
        self._announced: str | None = None  # the alias, in an order that may not have come back yet
        self._told: set[str] = set(serving.refused)
        self._loaded: dict[str, ColumnsByName] = {}
        if isinstance(serving.champion, ColumnsByName):
            self._keep(serving.champion)
        self._again_s: dict[str, float] = {}  # when a model that could not be used is tried again
        self._failed = Seldom(log)
        self._stopping = threading.Event()
        self.n_refused = 0  # models that were not swapped in

    def run(self) -> None:
        while not self._stopping.wait(LOOK_EVERY_S):
            try:
                self.look()
            except Exception as error:  # this thread must not end while the scorer runs
                words = str(error) if isinstance(error, (BrokerError, ModelError, OSError)) else repr(error)
                self._failed.warning("the champion cannot be followed at the moment: %s", words)

    def stop(self) -> None:
        self._stopping.set()
        if (trial := self.serving.trial) is not None:
            trial.end()
        if self.is_alive():
            self.join(timeout=0.3)
        if not self.is_alive():
            self._orders.close()
        if self.serving.shadow is not None:
            self.serving.shadow.stop()

    def look(self) -> None:
        """Go on with a trial and obey new orders. Then tell the others of a returned model or a moved alias."""
        self._go_on_with_trial()
        self._obey_new()
        self._apply()  # before MLflow is asked, which may take seconds
        self._tell_returned()
        if self._announce_alias():
            self._obey_new(wait_ms=round(ECHO_S * 1000))
            self._apply()
        self._follow_shadow()

    def _go_on_with_trial(self) -> None:
        trial = self.serving.trial
        try:
            if trial is not None:
                trial.compare()
        except Exception as error:  # a model may fail in any way; its rate of alerts is judged all the same
            self._failed.warning("the new model cannot be compared with the one before: %s", type(error).__name__)

    def _obey_new(self, *, wait_ms: int = 0) -> None:
        for order in self._orders.new(wait_ms=wait_ms):
            self._obey(order)

    def _obey(self, order: Order) -> None:
        self.wanted = self.wanted.after(order)
        obey_suppression(self.serving.suppressions, order)
        log.info("order by %s at %s: %s %s (%s)", order.by, order.at, order.kind, order.digest[:12], order.why)
        if order.kind == "use" or order.forced:  # a person wants it in spite of its trial
            self.serving.refused.pop(order.digest, None)
            self._told.discard(order.digest)
            self._again_s.pop(order.digest, None)
        elif order.refused is not None:
            self.serving.refused.setdefault(order.refused, order.why)
            self._told.add(order.refused)

    def _tell_returned(self) -> None:
        for bad, why in list(self.serving.refused.items()):
            if bad not in self._told:
                used = self.serving.champion.digest
                self._send(_returning(order_of("return", used, why=why, by=self._replica, refused=bad)))
                self._told.add(bad)

    def _announce_alias(self) -> bool:
        """Order to follow the alias, if it has moved since an order last named it."""
        uri, name = self._settings.tracking_uri_or_nowhere(), registry_name(self._stream)
        if not registry.answers(uri):
            return False
        known = self.wanted.alias
        resolved = registry.resolve(name, "champion", tracking_uri=uri, cache=self._settings.model_cache)
        if not resolved.registry_answered or resolved.digest in (self.wanted.alias, self._announced):
            return False
        why = f"version {resolved.version} is the champion"
        self._send(_following(order_of("follow", resolved.digest, why=why, by=self._replica), after=known))
        self._announced = resolved.digest
        return True

    def _send(self, decide: Decide) -> None:
        """Give an order, unless another replica has given the same one meanwhile."""
        if self._orders.can_be_given:
            give(self._settings.connection(), self._stream, decide)
        elif (order := decide(self.wanted)) is not None:
            self._obey(order)

    def _apply(self) -> None:
        wanted, champion = self.wanted, self.serving.champion
        if wanted.digest not in (None, champion.digest) and wanted.digest not in self.serving.refused:
            self._use(wanted.digest)
            return
        threshold = wanted.thresholds.get(champion.digest)
        model = self._loaded.get(champion.digest)
        if model is not None:
            changed = model.with_threshold(threshold)
            if changed.threshold != champion.threshold or changed.ordered_threshold != champion.ordered_threshold:
                self.serving.adjust(changed)
                log.info("the threshold of model %s is now %.9g", champion.digest[:12], changed.threshold)

    def _use(self, digest: str) -> None:
        before = self.serving.champion.digest
        if (model := self._model(digest)) is not None:
            self.serving.swap(model, on_trial=not self.wanted.is_proven)
            log.info("model %s is used instead of %s", digest[:12], before[:12])

    def _follow_shadow(self) -> None:
        """Let the wanted challenger score in shadow, unless it is the champion."""
        shadow = self.serving.shadow
        if shadow is None:
            return
        wanted = self._challenger() if self.wanted.shadow == CHALLENGER else self.wanted.shadow or None
        if wanted == self.serving.champion.digest:
            wanted = None
        if wanted == shadow.digest:
            return
        model = None if wanted is None else self._model(wanted)
        if model is not None and self._stream.topic("shadow") not in topics.topic_names(self._settings.connection()):
            self._failed.warning("%s does not exist; run `unmask topics create`", self._stream.topic("shadow"))
            return
        shadow.use(model)
        log.info("the model in shadow is %s", "none" if model is None else model.digest[:12])

    def _challenger(self) -> str | None:
        """What the challenger alias points to; where MLflow does not answer, what scores in shadow now."""
        uri, name = self._settings.tracking_uri_or_nowhere(), registry_name(self._stream)
        if registry.answers(uri):
            return registry.resolve(name, "challenger", tracking_uri=uri, cache=self._settings.model_cache).digest
        return None if self.serving.shadow is None else self.serving.shadow.digest

    def _model(self, digest: str) -> ColumnsByName | None:
        """A model with its ordered threshold; None if it cannot be used, or could not a moment ago."""
        now_s = time.monotonic()
        if now_s < self._again_s.get(digest, now_s):
            return None
        try:
            model = self._loaded.get(digest) or checked_model(self._settings, self._stream, digest)
        except (ModelError, OSError) as error:
            self.n_refused += 1
            self._again_s[digest] = now_s + TRY_AGAIN_S
            self.serving.unusable[digest] = str(error)
            log.error("model %s is not used, %s stays: %s", digest[:12], self.serving.champion.digest[:12], error)
            return None
        self.serving.unusable.pop(digest, None)
        self._keep(model)
        return model.with_threshold(self.wanted.thresholds.get(digest))

    def _keep(self, model: ColumnsByName) -> None:
        self._loaded.pop(model.digest, None)
        self._loaded[model.digest] = model
        while len(self._loaded) > MAX_LOADED:
            del self._loaded[next(iter(self._loaded))]


def following(settings: Settings, stream: Stream, *, name: str) -> ChampionFollower:
    """A follower that is not started yet; its `serving` has the model with which a scorer starts.

    If the champion alias has moved since the last order, an order to follow it is sent first. Without MLflow the last
    known alias counts only where no order has named a model yet.

    Args:
        name: of this replica, in the orders that it sends.

    Raises:
        ModelError: there is no model that can be loaded.
        BrokerError: the orders cannot be read.
    """
    alias, connection = champion_alias(settings, stream), settings.connection()
    orders = Orders(connection, stream)
    past = orders.past()
    wanted = Wanted.by(past)
    if alias.digest != wanted.alias and (alias.registry_answered or wanted.digest is None):
        order = order_of("follow", alias.digest, why=f"version {alias.version} is the champion", by=name)
        if orders.can_be_given:
            give(connection, stream, _following(order, after=wanted.alias))
            past += _echo(wanted, orders, alias.digest)
            wanted = Wanted.by(past)
        else:
            wanted = wanted.after(order)
    serving = _serving(settings, stream, wanted, first_model(settings, stream, wanted, alias))
    serving.refused |= wanted.refused
    serving.shadow = Shadow(connection, stream)
    for order in past:
        obey_suppression(serving.suppressions, order)
    return ChampionFollower(settings, stream, serving, orders, wanted, name=name)


def _serving(settings: Settings, stream: Stream, wanted: Wanted, first: ColumnsByName) -> Serving:
    """The models at the start: one that is wanted for less than a day is on trial again, beside the one before."""
    former = wanted.rollback_to
    if wanted.is_proven or first.digest != wanted.digest or former is None or _age_s(wanted.since) > TRIAL_AGAIN_S:
        return Serving(first)
    try:
        before = checked_model(settings, stream, former)
    except (ModelError, OSError) as error:
        log.warning("model %s has no trial, because %s cannot be loaded: %s", first.digest[:12], former[:12], error)
        return Serving(first)
    serving = Serving(before.with_threshold(wanted.thresholds.get(former)))
    serving.swap(first)
    return serving


def _age_s(at: str) -> float:
    """Seconds since a time in an order; many if it is none."""
    try:
        return time.time() - datetime.fromisoformat(at).timestamp()
    except (ValueError, OverflowError):
        return float("inf")


def _following(order: Order, *, after: str | None) -> Decide:
    """An order to follow an alias is given once, however many replicas see it move.

    Args:
        after: what was the alias in the orders when it was read; if it has moved on since, what was read may be old.
    """
    return lambda wanted: order if wanted.alias == after and wanted.alias != order.digest else None


def _returning(order: Order) -> Decide:
    """A model is returned once, however many replicas find it bad."""
    return lambda wanted: None if order.refused in wanted.refused else order


def _echo(wanted: Wanted, orders: Orders, alias: str) -> list[Order]:
    """The new orders, up to the one that was just sent: in its place among those of others."""
    found: list[Order] = []
    until = time.monotonic() + ECHO_S
    while wanted.alias != alias and time.monotonic() < until:
        for order in orders.new(wait_ms=100):
            wanted = wanted.after(order)
            found.append(order)
    return found


def first_model(settings: Settings, stream: Stream, wanted: Wanted, alias: registry.Resolved) -> ColumnsByName:
    """The model with which a scorer starts: the wanted one; if it cannot be loaded, the champion or one used before.

    Raises:
        ModelError: none can be loaded; the error is that of the first.
    """
    wishes = [one for one in (wanted.digest, alias.digest, *reversed(wanted.before)) if one is not None]
    first_error: ModelError | None = None
    for digest in sorted(dict.fromkeys(wishes), key=lambda one: one in wanted.refused):
        try:
            model = loaded_model(settings, stream, digest)
        except ModelError as error:
            log.error("model %s cannot be used: %s", digest[:12], error)
            first_error = first_error or error
            continue
        log.info("the first model is %s", digest)
        return model.with_threshold(wanted.thresholds.get(digest))
    assert first_error is not None
    raise first_error


def checked_model(settings: Settings, stream: Stream, digest: str) -> ColumnsByName:
    """Load a model, if the stream has all of its columns.

    Raises:
        ModelError: it cannot be loaded, or the stream does not have all of its columns: it is one of another stream.
    """
    model = loaded_model(settings, stream, digest)
    if model.missing:
        raise ModelError(f"it has columns that the stream does not have: {', '.join(model.missing[:5])}")
    return model
