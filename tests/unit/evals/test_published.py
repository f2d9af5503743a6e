"""Published rows stand beside sets of the same name and size only."""

from __future__ import annotations

from glint.evals.published import FILE, known_as, rows

try:
    import tomllib
except ModuleNotFoundError:
    import tomli as tomllib


def test_every_row_has_source_date_and_sane_figures() -> None:
    told = tomllib.loads(FILE.read_text())
    for source in told["source"]:
        assert source["source"] and source["date"] and source["name"]
        for row in source["rows"]:
            said = dict(zip(source["columns"], row, strict=True))
            assert all(50 < v < 100 for k, v in said.items() if k not in ("data", "net"))


def test_a_set_of_another_size_is_another_set() -> None:
    assert known_as("LFW", 6000) == "lfw" and known_as("lfw", 600) == ""
    assert known_as("AgeDB-30", 6000) == "agedb_30" and known_as("cfp-fp", 7000) == "cfp_fp"
    assert rows({"lfw": 600, "mine": 6000}) == []
    found = rows({"cfp_fp": 7000})
    assert found and all({*row.figures} == {"cfp_fp"} for row in found)
    assert {"ijbc", "ijbc_1e-5"} == {k for row in rows({"IJBC": 0}) for k in row.figures}
