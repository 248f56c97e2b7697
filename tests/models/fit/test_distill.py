from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from models.fit.distill import distill
from models.net import batches
from models.net.batches import Batches, surprises_of


def rows_of(trained) -> Batches:
    coding = trained.pretrained.rules.coding
    return Batches(coding, trained.table.take(slice(0, 6000)), torch.device("cpu"))


def test_the_student_is_smaller_and_as_surprised_as_its_teacher(trained) -> None:
    teacher, student = trained.pretrained.expectation, trained.pretrained.student
    cells = trained.pretrained.rules.coding.transform(trained.test.numeric, trained.test.categorical)
    told, learnt = surprises_of(teacher, cells), surprises_of(student, cells)
    trusted = [j for j, field in enumerate(teacher.fields) if teacher.trust[field.target] > 0]
    assert trusted
    for j in trusted:
        seen = np.isfinite(told[:, j])
        assert spearmanr(told[seen, j], learnt[seen, j]).statistic > 0.9
        top = np.argsort(-told[seen, j])[: seen.sum() // 100]
        assert (learnt[seen, j][top] > np.quantile(learnt[seen, j], 0.97)).mean() > 0.9

    def size(network: torch.nn.Module) -> int:
        return sum(p.numel() for p in network.parameters())

    assert size(student) < size(teacher)


def test_a_field_that_the_teacher_does_not_predict_has_its_marginal_distribution_in_both(trained) -> None:
    teacher = trained.pretrained.expectation
    before = teacher.trust.clone()
    teacher.trust.fill_(0.0)
    try:
        student = distill(teacher, rows_of(trained), max_steps=10, seed=0)
        cells = trained.pretrained.rules.coding.transform(trained.test.numeric[:200], trained.test.categorical[:200])
        np.testing.assert_array_equal(surprises_of(student, cells), surprises_of(teacher, cells))
    finally:
        teacher.trust.copy_(before)


def test_rows_in_memory_and_rows_read_for_each_batch_are_the_same(trained, monkeypatch: pytest.MonkeyPatch) -> None:
    at = np.random.default_rng(0).integers(0, 6000, 500)
    resident = rows_of(trained)
    monkeypatch.setattr(batches, "RESIDENT_BYTES", 0)
    read = rows_of(trained)
    assert resident.resident is not None
    assert read.resident is None
    for one, other in zip(resident.take(at), read.take(at), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_the_teacher_can_score_itself(trained) -> None:
    """Where speed does not matter."""
    itself = replace(trained.pretrained, student=trained.pretrained.expectation)
    assert np.isfinite(itself.score(trained.test)).all()
