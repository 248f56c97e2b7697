import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.fit.finetune import finetune
from models.fit.pretrain import pretrain
from models.ship.artifact import FILES, load, save
from models.ship.manifest import ArtifactError
from models.table import Column, Table
from tests.models.conftest import FINETUNE, PRETRAIN, stream
from tests.patience import HANG_S

NAMES = ("day_zero", "labelled")


@pytest.mark.parametrize("name", NAMES)
def test_onnx_scores_as_torch_does(trained, saved, name: str) -> None:
    served = load(saved[name][0], expect=saved[name][1])
    numeric, categorical = trained.test.numeric[:1000], trained.test.categorical[:1000]
    batch = served.score(numeric, categorical)
    assert batch.dtype == np.float32
    np.testing.assert_allclose(batch, getattr(trained, name).score(numeric, categorical), rtol=0, atol=1e-5)
    assert served.explain(numeric[:0], categorical[:0]) == []


@pytest.mark.parametrize("name", NAMES)
def test_everything_fitted_comes_back(trained, saved, name: str) -> None:
    folder, digest = saved[name]
    served, model = load(folder), getattr(trained, name)
    assert served.digest == digest
    assert len(digest) == 64
    assert served.columns == trained.table.columns
    assert served.threshold == model.rules.threshold
    assert served.rules.config() == model.rules.config()
    assert json.loads((folder / "manifest.json").read_text())["lineage"] == {"parent": "test"}
    assert served.rules.category_names == {11: "web", 22: "shop", 33: "phone"}


@pytest.mark.parametrize("frauds", [0, 200])
def test_a_field_missing_in_nine_of_ten_rows_surprises_as_before_where_it_is_there(tmp_path: Path, frauds: int) -> None:
    table, label = stream(6_000, seed=3)
    numeric, gone = np.array(table.numeric), np.random.default_rng(0).random((6_000, 2)) < 0.9
    gone[:, 1] |= table.category(0) == 0
    numeric[gone[:, 0], 0] = numeric[gone[:, 0], 2] = np.nan
    categorical = np.where(gone[:, 1:], 0, table.categorical).astype(np.uint64)
    table = replace(table, numeric=numeric, categorical=categorical)
    pretrained = pretrain(table, config=PRETRAIN, seed=0)
    known = np.full(len(table), frauds > 0)
    model = finetune(pretrained, table, label=label, known=known, config=FINETUNE, seed=0)
    assert model.metrics["has_head"] == (frauds > 0)
    save(model, tmp_path, lineage={})
    served = load(tmp_path)
    np.testing.assert_allclose(served.score(numeric, categorical), model.score(numeric, categorical), rtol=0, atol=1e-5)
    cells = model.rules.coding.transform(numeric, categorical)
    _, nats = model.outputs(cells)
    (served_nats,) = served.scorer.run(None, cells._asdict())
    np.testing.assert_array_equal(np.isnan(nats), gone)
    used = list(model.rules.evidence.surprised)
    assert used
    np.testing.assert_array_equal(np.isnan(served_nats)[:, used], gone[:, used])
    odd = np.array([[500.0, 50.0, 10.0, 2.0, 0.0], [np.nan, 50.0, np.nan, 2.0, 0.0]])
    shop = np.full((2, 1), 22, np.uint64)
    _, surprise = model.outputs(model.rules.coding.transform(odd, shop))
    assert surprise[0, 0] > 20
    assert model.rules.evidence.combine(odd, surprise.astype(np.float64))[0] > 3
    scores = served.score(odd, shop)
    assert scores[0] > 10 * scores[1] or not frauds
    first, second = served.explain(odd, shop)
    assert first.reasons[0].field == "amount"
    assert all(reason.surprise == 0 for reason in second.reasons if reason.actual is None)


@pytest.fixture
def copy(saved, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved["labelled"][0], tmp_path / "copy"))


def test_a_score_has_the_same_bits_alone_and_in_a_batch_of_any_size(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    country = random.integers(1, 5, 2_000).astype(np.uint64)
    bank = np.where(random.random(2_000) < 0.9, country, random.integers(1, 5, 2_000)).astype(np.uint64)
    columns = (Column("amount", "numeric", "amount"), *(Column(n, "categorical", n) for n in ("country", "bank")))
    amount = country[:, None] * random.gamma(5.0, 1.0, (2_000, 1))
    table = Table(columns, amount, np.stack([country, bank], axis=1), np.arange(2_000), {})
    none = np.zeros(2_000, bool)
    encoder = pretrain(table, config=replace(PRETRAIN, width=16, max_steps=60, min_steps=60), seed=0)
    label = none.astype(np.int8)
    save(finetune(encoder, table, label=label, known=none, config=FINETUNE, seed=0), tmp_path, lineage={})
    served = load(tmp_path)
    whole = served.score(table.numeric, table.categorical)
    for size in (1, 3, 7, 13, 33):  # odd ones: the runtime takes eight or sixteen rows at once, and the rest apart
        parts = [slice(start, start + size) for start in range(0, 2_000, size)]
        found = np.concatenate([served.score(table.numeric[part], table.categorical[part]) for part in parts])
        np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize("name", FILES)
def test_a_file_with_one_changed_byte_is_refused_by_name_with_both_hashes(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"{name} has sha256 [0-9a-f]{{64}}; expected [0-9a-f]{{64}}"):
        load(copy)


def test_missing_truncated_and_linked_files_are_refused(copy: Path) -> None:
    content = (copy / "model.onnx").read_bytes()
    (copy / "model.onnx").write_bytes(content[:-1])
    with pytest.raises(ArtifactError, match=r"model.onnx has \d+ bytes; expected \d+"):
        load(copy)
    (copy / "model.onnx").rename(copy / "elsewhere")
    with pytest.raises(ArtifactError, match=r"model.onnx is missing or a link"):
        load(copy)
    (copy / "model.onnx").symlink_to(copy / "elsewhere")
    with pytest.raises(ArtifactError, match=r"model.onnx is missing or a link"):
        load(copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="not saved completely"):
        load(copy)


def test_a_manifest_naming_other_paths_is_refused(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["../outside"] = manifest["files"]["model.onnx"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"must list exactly .*\.\./outside"):
        load(copy)


def test_another_digest_than_expected_a_huge_or_broken_manifest_are_refused(copy: Path) -> None:
    with pytest.raises(ArtifactError, match="expected 0000"):
        load(copy, expect="0000")
    (copy / "manifest.json").write_text("[]")
    with pytest.raises(ArtifactError, match="is not a JSON object"):
        load(copy)
    (copy / "manifest.json").write_text(" " * 70_000)
    with pytest.raises(ArtifactError, match=r"has 70000 bytes; at most 65536 are allowed"):
        load(copy)


def test_weights_that_are_not_finite_and_golden_rows_that_score_otherwise_are_refused(copy: Path) -> None:
    import hashlib

    from safetensors.numpy import load_file
    from safetensors.numpy import save as to_bytes

    original = load_file(copy / "model.safetensors")
    for name, value, message in (
        ("rules.coding.scale", np.nan, "rules.coding.scale in model.safetensors contains values that are not finite"),
        ("golden.score", 0.5, "scores of the reference rows differ"),
    ):
        arrays = {k: v.copy() for k, v in original.items()}
        arrays[name][:] = value
        content = to_bytes(arrays)
        (copy / "model.safetensors").write_bytes(content)
        manifest = json.loads((copy / "manifest.json").read_text())
        said = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        manifest["files"]["model.safetensors"] = said
        (copy / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(ArtifactError, match=message):
            load(copy)


def test_loading_scoring_and_explaining_need_no_torch(saved) -> None:
    code = (
        "import sys, numpy as np; from pathlib import Path; from models.ship.artifact import load\n"
        f"served = load(Path({str(saved['labelled'][0])!r}))\n"
        "rows = np.zeros((3, 5)), np.zeros((3, 1), np.uint64)\n"
        "assert served.score(*rows).shape == (3,) and len(served.explain(*rows)) == 3\n"
        "assert not {'torch', 'sklearn', 'mlflow', 'onnx'} & set(sys.modules), sorted(sys.modules)\n"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
