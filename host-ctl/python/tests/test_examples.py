"""The examples are doctests: each line of them runs against a real dpu-app."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_does_what_it_says(example, card):
    library = example.stem.split("_")[0]
    pytest.importorskip(library, reason=f"{library} is not installed")
    parsed = doctest.DocTestParser().get_doctest(
        example.read_text().strip().strip('"'), {"socket": card.socket}, example.stem, str(example), 0
    )
    assert len(parsed.examples) > 10
    said: list[str] = []
    assert doctest.DocTestRunner().run(parsed, out=said.append).failed == 0, "".join(said)
