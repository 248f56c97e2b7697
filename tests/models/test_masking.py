from models.masking import event_fields, views
from models.table import Column


def test_hiding_a_field_hides_every_column_that_reveals_it() -> None:
    columns = (
        Column("amount", "numeric", of="amount"),
        Column("c.amount.mean.7d", "numeric"),
        Column("c.amount.ratio.7d", "numeric", of="amount"),
        Column("hour", "numeric", of="hour"),
    )
    fields = event_fields(columns)
    assert [f.columns for f in fields] == [(0, 2), (3,)]
    assert views(fields, 4).tolist() == [[True, False, True, False], [False, False, False, True]]


def test_label_fed_columns_are_never_fields() -> None:
    columns = (Column("a", "numeric"), Column("rate", "numeric", label_fed=True))
    assert [f.name for f in event_fields(columns)] == ["a"]


def test_many_fields_are_each_hidden_in_eight_passes() -> None:
    fields = event_fields([Column(f"x{i}", "numeric", of=f"x{i}") for i in range(30)])
    hidden = views(fields, 30)
    assert hidden.shape == (8, 30)
    assert (hidden.sum(axis=0) == 2).all()
