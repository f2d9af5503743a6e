from __future__ import annotations

import math

from hypothesis import example, given, settings
from hypothesis import strategies as st

from glint.errors import UsageError
from glint.recipes.load import Table, dump, load
from glint.train.recipe import Recipe

scalar = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"])),
)


class Loose(Table):
    values: dict[str, bool | int | float | str | list[bool | int | float | str]]


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])), st.one_of(scalar, st.lists(scalar))
    )
)
def test_what_dump_writes_load_reads(values: dict[str, object]) -> None:
    made = Loose.model_validate({"values": values})
    back = load(dump(made) + "\n", Loose)
    assert back == made
    for key, value in values.items():
        assert type(back.values[key]) is type(value)
        if isinstance(value, float):
            found = back.values[key]
            assert isinstance(found, float)
            assert math.copysign(1, found) == math.copysign(1, value)


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_any_text_is_a_recipe_or_a_usage_error(text: str) -> None:
    try:
        load(text + "\n", Recipe)
    except UsageError as error:
        assert error.code in ("GL0101", "GL0102")
    else:
        raise AssertionError("no text this short is a whole recipe")


@settings(max_examples=100, deadline=None)
@given(st.text(), st.lists(st.text(max_size=4), min_size=1, max_size=4), st.text())
@example("", ["0.0"], "")  # a table where a number or a text belongs
def test_any_override_is_taken_or_a_usage_error(left: str, keys: list[str], right: str) -> None:
    text = '[data]\npath="a"\n[backbone]\nname="mbf"\n[head]\nmargin="cosface"\n[optim]\nlr=1\n'
    text += "[schedule]\nepochs=1\n"
    for override in (
        left,
        ".".join(keys) + "=" + right,
        "data." + left,
        "optim.lr=" + right,
        "backbone.options." + keys[0] + "=" + right,
        "data.path=" + right,
    ):
        try:
            recipe = load(text, Recipe, [override])
        except UsageError as error:
            assert error.code == "GL0102"
        else:
            assert load(dump(recipe), Recipe) == recipe
