"""What the orders of a stream add up to. No input or output: every scorer comes to the same from the same orders."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import reduce
from typing import NamedTuple, Self

from pipelines.contracts.contract import MAX_TIME_MS
from pipelines.contracts.messages import rfc3339
from pipelines.contracts.suppression import Suppression
from pipelines.live.control import Order
from pipelines.live.suppressions import Suppressions

CHALLENGER = "challenger"  # instead of a digest: what this alias in the registry points to
MAX_BEFORE = 50  # former models that are remembered


def obey_suppression(suppressions: Suppressions, order: Order) -> None:
    """Obey an order about an entity; another one changes nothing."""
    match order:
        case Order(kind="suppress", entity=str(entity), id=str(id), until=datetime() as until):
            until_ms = _time_ms(until)
            told = Suppression(
                entity=entity, id=id, until=rfc3339(until_ms), by=order.by, at=order.at, why=order.why
            )  # fmt: skip
            suppressions.add(told, until_ms=until_ms)
        case Order(kind="unsuppress", entity=str(entity), id=str(id)):
            suppressions.remove(entity, id)


def _time_ms(moment: datetime) -> int:
    """Milliseconds since 1970 within the times that events can have; what is beyond is the end of them.

    >>> _time_ms(datetime.fromisoformat("9999-12-31T23:59:59.9999Z")) == MAX_TIME_MS
    True
    """
    try:
        found = round(moment.timestamp() * 1000)
    except (OverflowError, ValueError):
        found = 0 if moment.year == 1 else MAX_TIME_MS
    return min(max(found, 0), MAX_TIME_MS)


class OrderedThreshold(NamedTuple):
    """A threshold, and the share of events that is expected to raise an alert with it, if known."""

    value: float
    alert_rate: float | None = None


@dataclass(frozen=True)
class Wanted:
    """What all orders so far demand; of two orders the later one holds.

    Args:
        digest: the model to use; None before any order.
        since: when that was ordered.
        is_proven: it was used before, or a person wants it in spite of its trial: it is not on trial.
        before: models used before it, the newest last.
        alias: what the champion alias pointed to when it was last announced.
        refused: models that did not pass their trial, and why. Only an order to use them, or a forced promotion, lifts
            this.
        thresholds: those ordered, by the model for which they are.
        shadow: the model to score in shadow, or `CHALLENGER`; empty: none.

    Example:
        >>> from pipelines.live.control import order_of
        >>> orders = [order_of(kind, digest, why="", by="ann") for kind, digest in (("follow", "a"), ("use", "b"))]
        >>> wanted = Wanted.by(orders)
        >>> wanted.digest, wanted.rollback_to
        ('b', 'a')
    """

    digest: str | None = None
    since: str = ""
    is_proven: bool = False
    before: tuple[str, ...] = ()
    alias: str | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    thresholds: Mapping[str, OrderedThreshold] = field(default_factory=dict)
    shadow: str = ""

    @classmethod
    def by(cls, orders: Iterable[Order]) -> Self:
        """What these orders add up to."""
        return reduce(lambda wanted, order: wanted.after(order), orders, cls())

    @property
    def rollback_to(self) -> str | None:
        """The newest model used before this one that was not returned."""
        usable = [digest for digest in self.before if digest != self.digest and digest not in self.refused]
        return usable[-1] if usable else None

    def after(self, order: Order) -> Self:
        """What is wanted after one more order."""
        found = self._after(order)
        return found if found.digest == self.digest else replace(found, since=order.at)

    def _after(self, order: Order) -> Self:
        match order.kind:
            case "use":
                insists = order.digest in self.refused
                return self._pardoning(order.digest)._using(order.digest, is_proven=insists)
            case "follow":
                if order.digest == self.alias:  # another replica has announced it already
                    return self
                announced = replace(self, alias=order.digest)
                return announced if order.digest in self.refused else announced._using(order.digest)
            case "promote":
                lifted = self._pardoning(order.digest) if order.forced else self
                announced = replace(lifted, alias=order.digest)
                if self.digest is None and order.before is not None:  # the champion before any order
                    announced = replace(announced, digest=order.before)
                return announced if order.digest in lifted.refused else announced._using(order.digest)
            case "rollback":
                return self._back_to(order.digest)
            case "return":
                bad = order.refused or order.digest
                refused = {**self.refused, bad: order.why}
                told = replace(self, refused=refused)
                back = told.rollback_to if order.digest in refused else order.digest
                return told._back_to(back) if back is not None and self.digest in (None, bad) else told
            case "threshold":
                others = {digest: one for digest, one in self.thresholds.items() if digest != order.digest}
                if order.threshold is not None:
                    others[order.digest] = OrderedThreshold(order.threshold, order.alert_rate)
                return replace(self, thresholds=others)
            case "shadow":
                return replace(self, shadow=order.digest)
            case "suppress" | "unsuppress":  # `obey_suppression` keeps account of them
                return self

    def _pardoning(self, digest: str) -> Self:
        return replace(self, refused={bad: why for bad, why in self.refused.items() if bad != digest})

    def _using(self, digest: str, *, is_proven: bool = False) -> Self:
        if digest == self.digest:
            return self
        before = self.before if self.digest is None else (*self.before, self.digest)[-MAX_BEFORE:]
        return replace(self, digest=digest, is_proven=is_proven, before=before)

    def _back_to(self, digest: str) -> Self:
        """The model and those before it are as they were when it was last used."""
        last = max((at for at, one in enumerate(self.before) if one == digest), default=None)
        return replace(self, digest=digest, is_proven=True, before=self.before if last is None else self.before[:last])
