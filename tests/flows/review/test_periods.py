"""The reasons for a gap between validation and later events are those that were measured, and no others."""

from flows.review.periods import KNOWN_FRAUD, validation, why
from flows.streams.shipped import load
from models.plots import Period

STREAM = load("payments")
FIGURES = {
    "validation_ap": 0.69,
    "validation_ap_delayed": 0.61,
    "validation_ap_label_free": 0.29,
    "validation_frauds": 77.0,
    "validation_events": 6_396.0,
    KNOWN_FRAUD: 0.39,
}
LIVE = Period("live", 0.42, 330, 31_000, label_free=0.40, interval=(0.37, 0.48))


def test_the_gap_of_the_simulated_payments_has_its_measured_parts() -> None:
    said = why(STREAM, [*validation(FIGURES), LIVE], shares=(0.39, 0.60))
    assert said[0] == (
        "Average precision was 0.690 in validation and is 0.420 live (95 % interval 0.370 to 0.480), on 330 frauds."
    )
    assert "labels are final after 7 days" in said[1]
    assert "the same validation gives 0.610: 0.080 of the gap of 0.270." in said[1]
    assert "known for 39% of the ordinary events in validation, and for 60% later" in said[2]
    assert "the maturity together (37 days)" in said[2]
    assert "without labels, average precision is 0.290 in validation and 0.400 later" in said[3]
    assert len(said) == 4


def test_without_a_gap_or_without_a_measurement_nothing_is_explained() -> None:
    few = {"validation_ap": 0.5}
    near = Period("live", 0.48, 20, 900, interval=(0.3, 0.6))
    assert why(STREAM, [*validation(few), near])[1:] == ["There is no gap to explain."]
    low = Period("live", 0.40, 20, 900, interval=(0.3, 0.55))
    (said,) = why(STREAM, [*validation(few), low], shares=(0.4, 0.41))[1:]
    assert "may be chance" in said
    assert validation({}) == []
