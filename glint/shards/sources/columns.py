"""Which column of a table or a list holds labels: by its name, and by what stands in it."""

from __future__ import annotations

import re
from collections.abc import Sequence

OTHER = re.compile(  # columns that number rows, or describe images or people
    r"__index_level_\d+__|index|idx|unnamed: ?\d+|row(_?id)?|image_?id|key|uid|uuid|url|caption|"
    r"text|(file|image|img)_?(path|name)|path|md5|sha256|width|height|original_width|"
    r"original_height|status|split|exif|size|error_message|gender|sex|male|female|age|race|"
    r"ethnicity|emotion|expression|pose|yaw|pitch|roll|blur|quality|score|fold|partition|subset"
)


def all_differ(said: Sequence[object]) -> bool:
    """Say whether no two rows have one value."""
    return len(said) > 1 and len(set(said)) == len(said)


def one_of(said: dict[str, Sequence[object]]) -> str:
    """Return the one of several columns of labels that is it, "" where they tell people apart
    in different ways.

    One that says the same of all rows is none where another does not; names describe.
    """
    vary = {name: values for name, values in said.items() if len(set(values)) > 1} or said
    first, *others = vary
    count = len(set(vary[first]))
    for name in others:
        both = len(set(zip(vary[first], vary[name])))
        if "name" not in name.lower() and not both == count == len(set(vary[name])):
            return ""
    return first
