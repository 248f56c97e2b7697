"""The events of a demo: its own copy of the stream file, and a stream file that fits a folder."""

from pathlib import Path

import polars as pl
import pytest

from flows.demo import source
from flows.streams.shipped import load
from pipelines.errors import StreamFileError, UnmaskError
from tests.pipelines.payments import few_payments


def test_the_demo_plays_under_a_name_and_topics_of_its_own(tmp_path: Path) -> None:
    few_payments().write_parquet(tmp_path / "events.parquet")
    target = tmp_path / "stream.toml"
    found = source.read(data=tmp_path, given=None, target=target, seed=0)
    assert (load(target).name, found.stream.name) == ("payments-demo", "payments-demo")
    assert found.stream.topics.startswith("payments-2")
    assert found.stream.features == load("payments").features
    assert found.n_history + found.n_live == len(found.frame) == len(few_payments())
    assert found.n_live > 0
    assert found.has_truth


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_folder_that_fits_no_shipped_stream_says_so_with_its_columns(kind: str, tmp_path: Path) -> None:
    frame = pl.DataFrame({"who": ["a"], "what": [1]})
    frame.write_parquet(tmp_path / "x.parquet") if kind == "parquet" else frame.write_csv(tmp_path / "x.csv")
    with pytest.raises(StreamFileError, match=r"no shipped stream file fits .* \(its columns: what, who\)"):
        source.read(data=tmp_path, given=None, target=tmp_path / "stream.toml", seed=0)


def test_a_folder_without_files_and_a_damaged_file_say_so(tmp_path: Path) -> None:
    with pytest.raises(UnmaskError, match=r"has no .parquet or .csv file"):
        source.read(data=tmp_path, given=None, target=tmp_path / "stream.toml", seed=0)
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(StreamFileError, match=r"x.parquet: cannot be read"):
        source.read(data=tmp_path, given=None, target=tmp_path / "stream.toml", seed=0)
