"""Runs, models and datasets to and from a hub, by huggingface_hub: its one door.

A model goes as `model.safetensors`, `config.json` and a card, the layout that `from_pretrained`
readers know; the head's centres and the optimiser stay at home. What is pulled lies in OUT.partial
until every file has the checksum that the hub lists, and nothing of it is run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import glint
from glint.errors import BusyError, GlintError, InputError, ResourceError, UnsafeError, UsageError
from glint.files import atomic
from glint.log import logger
from glint.models import checkpoint, stored
from glint.results import models as results

INSTALL = "pip install 'glint-faces[hub]'"
REPO = re.compile(r"(datasets/)?([\w.-]+/[\w.-]+)")
RUNS = (".py", ".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".npz", ".joblib")
_LEFT = {"_glint", ".git", ".cache"}  # locks and journals of this machine


def push(
    source: str | Path, repo: str, *, public: bool = False, faces: bool = False
) -> results.Push:
    """Upload a run, checkpoint, ONNX file or dataset as one commit; private unless `public`.

    repo: OWNER/NAME; a dataset goes to datasets/OWNER/NAME. faces: the word of whoever calls that
    the images of a dataset may be given away. What is there already is not sent again. Raises
    UsageError GL0001, GL0002 for a repository that is public and was not to be, GL0003, UnsafeError
    GL0803 for a dataset without `faces`, ResourceError GL0903 where the hub does not answer.
    """
    source, (kind, name) = Path(source), _repo(repo)
    hub = _door()
    if not source.exists():
        raise UsageError("GL0001", "no such run, model or dataset", where=str(source))
    dataset = any((source / one).exists() for one in ("manifest.json", "samples.parquet"))
    if dataset and not faces:
        raise UnsafeError(
            "GL0803",
            "a dataset of faces is personal data: with it go the images and identities of people",
            where=str(source),
            hint="--these-faces-may-be-shared, where its licence and those people allow it",
        )
    if kind == "dataset" and not dataset:
        what = f"this is no dataset, and {repo} would be one"
        raise UsageError("GL0002", what, where=str(source))
    kind = "dataset" if dataset else kind
    with TemporaryDirectory(prefix="glint-push-") as made, _asked(repo):
        files = _dataset_files(source) if dataset else _model_files(source, Path(made), name)
        hub.create_repo(name, repo_type=kind, private=not public, exist_ok=True)
        private = bool(hub.repo_info(name, repo_type=kind).private)
        if not private and not public:
            raise UsageError(
                "GL0002",
                "it exists and is public: nothing was uploaded",
                where=repo,
                hint="--public, or make it private first",
            )
        from huggingface_hub import CommitOperationAdd

        commit = hub.create_commit(
            name,
            [CommitOperationAdd(place, str(path)) for place, path in sorted(files.items())],
            commit_message=f"glint {glint.__version__} push",
            repo_type=kind,
        )
        listed = _listed(hub, name, kind, commit.oid)
        for place, path in files.items():
            if place not in listed or (wrong := _wrong(path, listed[place])):
                what = f"{place}: " + (wrong if place in listed else "not there after the upload")
                raise ResourceError("GL0903", what, where=repo, hint="the same command goes on")
    size = sum(listed[place].size for place in files)
    return results.Push(
        repo=name, kind=kind, private=private, commit=commit.oid, files=len(files), bytes=size
    )


def pull(repo: str, out: str | Path, *, revision: str = "main") -> results.Pull:
    """Download a repository to a new folder `out`, whole and with checksums as listed, or not.

    repo: OWNER/NAME or datasets/OWNER/NAME. The same command continues what was broken off. Raises
    UsageError GL0001 for a repository that is not there or not for this token, BusyError GL0004,
    UnsafeError GL0803 for a path that leaves the folder, InputError GL0306 for a wrong checksum
    (that file is deleted), ResourceError GL0903 where the hub does not answer.
    """
    out, (kind, name) = Path(out), _repo(repo)
    hub = _door()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BusyError("GL0004", "it is there already", where=str(out), hint="name a new folder")
    partial = out.with_name(out.name + ".partial")
    with atomic.lock(out.with_name(out.name + ".partial.lock")), _asked(repo):
        commit = str(hub.repo_info(name, repo_type=kind, revision=revision).sha)
        listed = _listed(hub, name, kind, commit)
        for place in listed:
            parts = PurePosixPath(place).parts
            if not parts or place.startswith("/") or ".." in parts or "\\" in place:
                raise UnsafeError("GL0803", f"it holds a file {place!r}", where=repo)
        hub.snapshot_download(name, repo_type=kind, revision=commit, local_dir=partial)
        bad = []
        for place, entry in listed.items():
            path = partial / place
            if path.is_symlink() or not path.is_file() or (wrong := _wrong(path, entry)):
                wrong = wrong if path.is_file() and not path.is_symlink() else "it is not there"
                path.unlink(missing_ok=True)
                bad.append(f"{place}: {wrong}")
        if bad:
            raise InputError(
                "GL0306", "; ".join(bad[:3]), where=str(partial),
                hint="the same command downloads it again",
            )  # fmt: skip
        shutil.rmtree(partial / ".cache", ignore_errors=True)
        for path in sorted(partial.rglob("*"), reverse=True):
            if not path.is_dir() and path.relative_to(partial).as_posix() not in listed:
                path.unlink()  # of another revision
        atomic.sync_files(partial)
        if out.exists():
            out.rmdir()
        partial.rename(out)
        atomic.sync_dir(out.parent)
    out.with_name(out.name + ".partial.lock").unlink(missing_ok=True)
    runs = sorted(place for place in listed if place.endswith(RUNS))
    if runs:
        what = "%d files can run code where they are loaded, such as %s"
        logger.warning(what, len(runs), runs[0])
    size = sum(entry.size for entry in listed.values())
    return results.Pull(
        repo=name, kind=kind, commit=commit, files=len(listed), bytes=size, out=str(out)
    )


def _door() -> Any:
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise UsageError("GL0003", "a hub needs huggingface_hub", hint=INSTALL) from None
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="glint")


def _repo(repo: str) -> tuple[str, str]:
    found = REPO.fullmatch(repo)
    if not found:
        what = f"expected OWNER/NAME or datasets/OWNER/NAME, found {repo!r}"
        raise UsageError("GL0002", what, where="REPO")
    return "dataset" if found[1] else "model", found[2]


@contextmanager
def _asked(repo: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into an error of glint's."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except GlintError:
        raise
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UsageError(
            "GL0001", f"no such repository, or none for this token: {_first(error)}", where=repo,
            hint="a private one needs HF_TOKEN, or `hf auth login`",
        ) from error  # fmt: skip
    except Exception as error:  # requests', httpx's, its own: their classes change with its version
        raise ResourceError(
            "GL0903", f"{type(error).__name__}: {_first(error)}", where=repo,
            hint="the same command goes on where it was",
        ) from error  # fmt: skip


def _first(error: BaseException) -> str:
    cause = error.__cause__
    return str(error).strip().split("\n")[0] + (f" ({cause})" if cause else "")


def _listed(hub: Any, name: str, kind: str, commit: str) -> dict[str, Any]:
    """Return the files of a commit by their paths."""
    tree = hub.list_repo_tree(name, recursive=True, revision=commit, repo_type=kind)
    return {entry.path: entry for entry in tree if hasattr(entry, "blob_id")}


def _wrong(path: Path, entry: Any) -> str:
    """Say in what a file differs from what the hub lists: its sha256, or git's sha1; "" if not."""
    size = path.stat().st_size
    if size != entry.size:
        return f"{size} bytes, expected {entry.size}"
    if entry.lfs is not None:
        found, expected = checkpoint.sha256(path), entry.lfs.sha256
    else:
        content = path.read_bytes()  # no LFS: small
        found = hashlib.sha1(b"blob %d\0" % size + content).hexdigest()
        expected = entry.blob_id
    return "" if found == expected else f"checksum {found}, expected {expected}"


def _dataset_files(source: Path) -> dict[str, Path]:
    from glint.shards.dataset import Dataset

    Dataset(source)  # whole and finished
    return {
        path.relative_to(source).as_posix(): path
        for path in sorted(source.rglob("*"))
        if path.is_file() and not path.is_symlink()
        and not _LEFT & set(path.relative_to(source).parts) and not path.name.endswith(".lock")
    }  # fmt: skip


def _model_files(source: Path, made: Path, name: str) -> dict[str, Path]:
    """Return what makes a model readable elsewhere, written into `made`."""
    if source.is_file():
        if source.suffix != ".onnx":
            raise UsageError("GL0002", "expected a run, checkpoint, dataset or .onnx file",
                             where=str(source))  # fmt: skip
        config: dict[str, Any] = {"model_type": "glint-onnx"}
        files = {"model.onnx": source}
        digest = checkpoint.sha256(source)
    else:
        from safetensors.torch import save_file

        net = stored.load(source)
        files = {stored.WEIGHTS: made / stored.WEIGHTS}
        state = {key: value.contiguous() for key, value in net.net.state_dict().items()}
        save_file(state, files[stored.WEIGHTS], metadata={"format": "pt"})
        digest = checkpoint.sha256(files[stored.WEIGHTS])
        config = {
            "model_type": stored.MODEL_TYPE,
            "backbone": {"name": net.name, "embedding": net.embedding, "options": net.options},
            "step": net.step,
        }
    config |= {"sha256": digest, "image_size": 112, "image_mean": 127.5, "image_std": 127.5,
               "color": "RGB", "glint": glint.__version__}  # fmt: skip
    if source.is_file():  # its scaling is in its nodes
        config = {key: config[key] for key in ("model_type", "sha256", "glint")}
    (made / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (made / "README.md").write_text(_card(name, config))
    return {**files, "config.json": made / "config.json", "README.md": made / "README.md"}


def _card(name: str, config: dict[str, Any]) -> str:
    backbone = config.get("backbone", {})
    what = (
        f"`{backbone['name']}`, {backbone['embedding']} numbers a face, step {config['step']}.\n\n"
        "Input: aligned 112x112 RGB crops, (pixel - 127.5) / 127.5, as (n, 3, 112, 112)."
        if backbone
        else "An ONNX file."
    )
    read = "" if backbone else "/model.onnx"
    return (
        "---\nlibrary_name: glint\npipeline_tag: image-feature-extraction\n"
        "tags:\n- face-recognition\n---\n\n"
        f"# {name}\n\nA face recogniser trained with glint {config['glint']}: {what}\n\n"
        f"    glint pull {name} model\n    glint eval pairs FILE.bin --model model{read}\n\n"
        "Who trained it on what, how well it does and for whom, and where it may not be used: "
        "not said yet.\n"
    )
