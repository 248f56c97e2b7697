"""A page shows everything that is logged, and nothing of an event becomes markup."""

from flows.review.sections import Plot, Rows, Section, markdown, page
from models import plots

EVIL = "<script>alert(1)</script>"


def test_a_page_has_every_part_in_one_file_and_escapes_what_comes_from_events() -> None:
    figure = plots.label_efficiency([(5, 0.3), (50, 0.5)], label_free=0.2)
    section = Section("Title", [EVIL], [f"warned {EVIL}"], [Plot("p", figure)], [Rows("t", ("a",), [(EVIL,)])])
    html = page("Report", [("stream", EVIL)], [section])
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 4
    assert html.count("<svg") == 1
    assert "http" not in html.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )


def test_the_description_is_a_table_of_facts_and_its_cells_stay_cells() -> None:
    found = markdown([("stream", "a | b"), ("events", EVIL)], ["Words."])
    assert found.startswith("Words.\n\n| | |\n")
    assert found.splitlines()[4:] == [r"| stream | a \| b |", "| events | &lt;script&gt;alert(1)&lt;/script&gt; |"]
