"""The verdict on a candidate: each check of its evidence, with the limits of [promotion] in the stream file."""

from collections.abc import Mapping
from typing import NamedTuple

from flows.evidence import Evidence, Versus
from flows.gate import Comparison, Figures
from models.fit.leaks import Alone
from pipelines.contracts.messages import rfc3339
from pipelines.contracts.stream import Promotion

MIN_EXPECTED = 30  # if the budget allows this many alerts, having none is a failure
MIN_SHARED = 0.15  # good models share .43 or more, planted bad ones .07 or less (LOG, 30 November 2026)
BASELINES = ("logistic_regression", "isolation_forest")
FORMERS = {"champion": "the champion", "reference": "the best former champion"}


class Check(NamedTuple):
    """What was found, and whether it is good enough."""

    seen: str
    holds: bool


def judge(evidence: Evidence, figures: Figures | None, limits: Promotion) -> dict[str, Check]:
    """Run all checks; all must hold for a promotion. A check of a measurement that is missing (NaN) does not hold.

    Args:
        figures: measured when the candidate was trained.
        limits: of the stream.
    """
    checks = {
        "scores": Check(
            f"{evidence.distinct:,} different scores of {evidence.rows:,} events since {rfc3339(evidence.since_ms)}"
            + ("" if evidence.finite else "; some are not numbers"),
            evidence.finite and evidence.distinct > 1,
        ),
        "alert budget": _alert_budget(evidence, limits),
        "score drift": Check(
            f"stability index {evidence.drift:.3f} from the training period to the events since; {limits.max_drift:g} "
            "is allowed",
            evidence.drift <= limits.max_drift,
        ),
        "leaks": Check("; ".join(evidence.leaks) or "no field knows the label", not evidence.leaks),
    }
    if evidence.reasons is not None:
        seen = f"{evidence.reasons:.0%} of the alerts are none once the named fields are as expected"
        checks["reasons"] = Check(f"{seen}; at least {limits.min_reasons:.0%}", evidence.reasons >= limits.min_reasons)
    if limits.shadow_events:
        checks["shadow"] = _shadow(evidence, limits)
    if evidence.frauds < limits.min_frauds:
        seen = f"{evidence.frauds} known frauds since then, {limits.min_frauds} are needed: checked without labels"
        return checks | {"labels": Check(seen, True)} | _with_few_labels(evidence)
    return checks | _with_labels(evidence, figures, limits)


def _with_few_labels(evidence: Evidence) -> dict[str, Check]:
    """A model that is surely worse than the champion, or has nothing in common with it, does not pass."""
    checks: dict[str, Check] = {}
    if evidence.shared is not None:
        seen = (
            f"{evidence.shared:.0%} of the highest scores are the champion's highest, too; {MIN_SHARED:.0%} are needed"
        )
        checks["agreement"] = Check(seen, evidence.shared >= MIN_SHARED)
    for name, words in FORMERS.items():
        if name in evidence.formers:
            seen, _ = _former(words, evidence.formers[name], Promotion())
            checks[name] = Check(seen, not evidence.formers[name].average_precision.is_clear_loss)
        elif name in evidence.not_compared:
            checks[name] = _not_compared(name, evidence)
    return checks


def _not_compared(name: str, evidence: Evidence) -> Check:
    """A champion that cannot be loaded is for a person to judge; a former one does not matter."""
    return Check(f"not compared: {evidence.not_compared[name]}", name != "champion")


def _with_labels(evidence: Evidence, figures: Figures | None, limits: Promotion) -> dict[str, Check]:
    checks: dict[str, Check] = {}
    for name, words in FORMERS.items():
        if name in evidence.formers:
            one = evidence.formers[name]
            checks[name] = _former(words, one, limits)
            if name == "champion":
                seen = f"{one.time:.1f} times that of {words} for the same events; {limits.max_time:g} is allowed"
                checks["time"] = Check(seen, one.time <= limits.max_time)
        elif name in evidence.not_compared:
            checks[name] = _not_compared(name, evidence)
    if evidence.strongest is not None:
        checks["one field"] = _one_field(evidence.strongest, evidence.formers.get("champion"), limits)
    baselines = {} if figures is None else figures.comparisons
    checks["baselines"] = _floor({name: baselines[name] for name in BASELINES if name in baselines}, limits)
    if evidence.bias is not None:
        seen = f"{evidence.bias:.2f} expected frauds for each known one; {limits.max_bias:g} either way is allowed"
        checks["calibration"] = Check(seen, 1 / limits.max_bias <= evidence.bias <= limits.max_bias)
    if evidence.cost:
        ours, most = evidence.cost["ours"], min(evidence.cost["no_alert"], evidence.cost["all_alert"])
        seen = f"{ours:g}; {evidence.cost['no_alert']:g} with no alert, {evidence.cost['all_alert']:g} if all alert"
        checks["cost"] = Check(seen, ours <= most)
    return checks


def is_new_reference(evidence: Evidence, limits: Promotion) -> bool:
    """Whether the candidate, once promoted, becomes the reference for later ones.

    The reference is the best champion so far. Each candidate is compared with it on the same events, so small losses
    from one champion to the next cannot add up. A candidate replaces it if it is at least as good.
    """
    before = evidence.formers.get("reference")
    return (
        evidence.frauds >= limits.min_frauds
        and before is not None
        and before.frauds >= limits.min_frauds
        and before.average_precision.ours >= before.average_precision.theirs
    )


def _alert_budget(evidence: Evidence, limits: Promotion) -> Check:
    n, allowed = evidence.rows, evidence.allowed_rate
    # the allowed growth and three standard deviations of a binomial count
    most = limits.max_alerts * allowed + 3 * (allowed * max(1 - allowed, 0.0) / max(n, 1)) ** 0.5
    silent = allowed * n >= MIN_EXPECTED and evidence.alert_rate == 0
    seen = f"{evidence.alert_rate:.3%} of the {n:,} events raise an alert; {allowed:.3%} is the budget"
    return Check(seen, evidence.alert_rate <= most and not silent)


def _former(words: str, one: Versus, limits: Promotion) -> Check:
    average, precision = one.average_precision, one.precision
    learned = ", some of which it was trained on" if one.learned else ""
    seen = (
        f"average precision {average.ours:.3f}, {words} {average.theirs:.3f} on the same {one.frauds} frauds{learned} "
        f"(difference {average.low:+.3f} to {average.high:+.3f}); precision of the {one.n_alerts:,} highest scores "
        f"{precision.ours:.1%}, {precision.theirs:.1%} ({precision.low:+.1%} to {precision.high:+.1%})"
    )
    loses = average.is_clear_loss or (precision.is_clear_loss and precision.ours < precision.theirs - limits.max_loss)
    return Check(seen, average.ours >= average.theirs - limits.max_loss and not loses)


def _one_field(strongest: Alone, champion: Versus | None, limits: Promotion) -> Check:
    """A field that alone does what the champion cannot do most often knows what comes later."""
    before, found = 0.0 if champion is None else champion.average_precision.theirs, strongest.average_precision
    most = max(limits.max_one_field, before + limits.max_loss)
    seen = f"{strongest.field} alone has an average precision of {found:.3f}; {most:.3f} is allowed"
    if found <= most:
        return Check(seen, holds=True)
    advice = (
        "If it is known when an event happens, set max_one_field = 1 in [promotion] of the stream file; if it is "
        "filled in later, delete it from [fields]"
    )
    return Check(f"{seen}. {advice}", holds=False)


def _floor(baselines: Mapping[str, Comparison], limits: Promotion) -> Check:
    if not baselines:
        return Check("no baseline was measured with the model; run `unmask finetune`", False)
    name, best = max(baselines.items(), key=lambda one: one[1].theirs)
    beside = f"{name.replace('_', ' ')} {best.theirs:.3f} on {best.frauds} held-out frauds"
    seen = f"average precision {best.ours:.3f}, {beside}"
    return Check(seen, best.ours >= best.theirs - limits.max_loss)


def _shadow(evidence: Evidence, limits: Promotion) -> Check:
    shadow = evidence.shadow
    if shadow is None or shadow.events < limits.shadow_events:
        n = 0 if shadow is None else shadow.events
        return Check(
            f"{n:,} live events scored in shadow, {limits.shadow_events:,} are needed; run `unmask shadow challenger`",
            False,
        )
    rank = "not defined" if shadow.rank_correlation is None else f"{shadow.rank_correlation:.3f}"
    seen = (
        f"{shadow.events:,} live events: {shadow.alert_rate:.3%} raise an alert, with the champion "
        f"{shadow.champion_alert_rate:.3%}; rank correlation {rank}"
    )
    most = limits.max_alerts * max(evidence.allowed_rate, shadow.champion_alert_rate) + 20 / shadow.events
    return Check(seen, shadow.rank_correlation is not None and shadow.alert_rate <= most)
