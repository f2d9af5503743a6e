"""Files, functions and constructors stay small, and no file imports itself through others."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

GLINT = Path(__file__).parents[2] / "glint"
FILES = {str(path.relative_to(GLINT)): path for path in sorted(GLINT.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}

# Justified: a class of glint.results has a field for each key that is printed, and is built by
# keywords only.
WIDE = {"results/bench.py", "results/datasets.py", "results/identities.py", "results/models.py"}
TODO: set[str] = set()  # "file" or "file function", with a reason


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (
        one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def over() -> Iterator[tuple[str, str]]:
    for name, tree in TREES.items():
        length = len(FILES[name].read_text(encoding="utf-8").splitlines())
        if length > 450:
            yield name, f"{length} lines, at most 450"
        for one in functions(tree):
            length = (one.end_lineno or 0) - one.lineno + 1
            if length > 80:
                yield f"{name} {one.name}", f"{length} lines, at most 80"
            wide = len([*one.args.posonlyargs, *one.args.args, *one.args.kwonlyargs]) - 1
            if one.name == "__init__" and wide > 12:
                yield f"{name} {one.name}", f"{wide} arguments, at most 12"
        for kind in ast.walk(tree):
            if not isinstance(kind, ast.ClassDef) or name in WIDE:
                continue
            fields = [one for one in kind.body if isinstance(one, ast.AnnAssign)]
            fields = [one for one in fields if "ClassVar" not in ast.unparse(one.annotation)]
            made = any("dataclass" in ast.unparse(one) for one in kind.decorator_list)
            if made and len(fields) > 12:
                yield f"{name} {kind.name}", f"{len(fields)} fields, at most 12"


def test_files_functions_and_constructors_are_small() -> None:
    assert {name: why for name, why in over() if name not in TODO} == {}


def test_no_exception_is_left_that_nothing_needs() -> None:
    assert TODO - {name for name, _ in over()} == set()


def imported(name: str) -> Iterator[str]:
    """Yield the files that a file imports, inside its functions and for types too."""
    package = ["glint", *Path(name).parts[:-1]]
    for one in ast.walk(TREES[name]):
        words: list[str] = []
        if isinstance(one, ast.Import):
            words = [part.name for part in one.names]
        elif isinstance(one, ast.ImportFrom):
            assert not one.level, f"{name}: a relative import of {package}"
            words = [f"{one.module}.{part.name}" for part in one.names]
        for word in words:
            parts = word.split(".")
            if parts[0] != "glint":
                continue
            for end in (len(parts), len(parts) - 1):
                place = "/".join(parts[1:end])
                found = [file for file in (f"{place}.py", f"{place}/__init__.py") if file in FILES]
                if found:
                    yield found[0]
                    break


def test_no_circle_between_files() -> None:
    TopologicalSorter({name: {*imported(name)} - {name} for name in FILES}).prepare()
