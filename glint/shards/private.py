"""Where glint writes in a dataset: nothing there may be a link to something else."""

from __future__ import annotations

from pathlib import Path

from glint.shards.walk import Findings, Problem, plain_size


def links(root: Path, notes: list[str]) -> Findings:
    """Find links, pipes and files where glint has folders and files to write of its own.

    Links elsewhere are only read: they are one line in `notes`. Raises OSError.
    """
    found, read = Findings(), list[str]()
    for place in ("_glint", "labels", "data", ""):
        folder, private = root / place, place in ("_glint", "labels")
        if private and (folder.is_symlink() or folder.exists() > folder.is_dir()):
            what = "a symbolic link" if folder.is_symlink() else plain_size(folder)
            what = what if isinstance(what, str) else "a file"
            what = f"expected a folder of glint's own, found {what}"
            found.add(Problem("GL0301", what, place))
            continue
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            odd, name = path.is_symlink(), path.relative_to(root).as_posix()
            if path.name == "lock" or (place == "_glint" and path.name != "tombstones.jsonl"):
                if odd or not (path.is_file() or path.is_dir()):
                    what = "a symbolic link" if odd else str(plain_size(path))
                    what = f"expected a file of glint's own, found {what}"
                    found.add(Problem("GL0301", what, name))
            elif odd and name not in ("labels", "_glint"):
                read.append(name)
    if read:
        more = f" and {len(read) - 1} more" if len(read) > 1 else ""
        notes.append(f"{read[0]}{more}: symbolic links, read where they lead")
    return found
