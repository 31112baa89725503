"""The tables of speed say what the results say."""

import pytest

import tables


def test_tables_are_up_to_date() -> None:
    tables.main(["--check"])


def test_a_table_stands_between_its_comments() -> None:
    text = "a\n<!-- one: start -->\nold\n<!-- one: end -->\nb\n"
    assert tables.with_tables(text, {"one": lambda: "new"}) == (
        "a\n<!-- one: start -->\n\nnew\n\n<!-- one: end -->\nb\n"
    )


@pytest.mark.parametrize("text", ["a\n", "<!-- one: start -->\n", "<!-- one: end -->\n<!-- one: start -->\n"])
def test_a_text_without_both_comments_is_not_cut(text: str) -> None:
    with pytest.raises(SystemExit, match="has no <!-- one: start --> that <!-- one: end --> follows"):
        tables.with_tables(text, {"one": lambda: "new"})


def test_a_stale_table_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "speed", lambda: "| shape |")
    with pytest.raises(SystemExit, match="README.md is not up to date"):
        tables.main(["--check"])
