"""About a third of the hostile kinds; all of them: `python -m tests.bench.hostile`."""

from pathlib import Path

from tests.pipelines.live.hostile import KINDS, Battery


def test_no_hostile_record_stops_the_scorer_or_touches_its_neighbours(kafka: str, tmp_path: Path) -> None:
    battery = Battery(kafka, tmp_path)
    try:
        for kind in KINDS:
            if kind.quick:
                battery.run(kind)
        wrong = battery.check(tmp_path / "lake")
    finally:
        battery.close()
    wrong += [f"{outcome.kind.name}: {text}" for outcome in battery.outcomes for text in outcome.wrong]
    assert not wrong, "\n".join(wrong)


def test_there_are_at_least_90_kinds_each_with_a_name_of_its_own_and_a_third_of_them_runs_here() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS) >= 90
    assert 3 * sum(kind.quick for kind in KINDS) >= len(KINDS)
