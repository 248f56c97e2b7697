"""The examples in docstrings hold."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    str(path.relative_to(ROOT))
    for package in ("pipelines", "models", "flows")
    for path in (ROOT / package).rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("file", FILES)
def test_the_examples_in_the_docstrings_of_a_file_hold(file: str) -> None:
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    failures: list[str] = []
    for example in doctest.DocTestFinder(exclude_empty=True).find(module):
        runner.run(example, out=failures.append)
    assert not failures, "".join(failures)
    assert runner.tries > 0, "no example was run: is it in a docstring that doctest finds?"
