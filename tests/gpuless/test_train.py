"""`glint train` on a pretended card: every option, save, resume and evaluation as on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import card
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from glint.dist.world import World, join
from glint.errors import ResourceError, UsageError
from glint.evals.allpairs import all_pairs
from glint.models import checkpoint
from glint.models.recogniser import open_model
from glint.recipes import shelf
from glint.recipes.load import load
from glint.search import pairs, screens
from glint.stream.loader import Batch
from glint.train import loop
from glint.train.build import build
from glint.train.recipe import Recipe

TINY = ["backbone.embedding=32", "backbone.options.widths=[4, 8, 8, 16]"]
TORCH = ["head.kernels=torch", *TINY]
QUEUE = ["head.slots=16", "run.ema=0.9", *TINY]
CASES: dict[str, tuple[str, list[str]]] = {
    "float32": ("synth_tiny", TORCH),
    "bf16": ("synth_tiny", [*TORCH, "run.precision=bf16", "run.channels_last=true", "optim.clip=0",
                            "run.ema=0.99", "run.accumulate=2", "data.batch=6", "head.gemm=bf16",
                            "head.rule=dense_exact"]),
    "fp16": ("synth_tiny", [*TORCH, "run.precision=fp16", "head.rule=lazy_decay",
                            "head.scale=2", "schedule.max_steps=6"]),  # the first three overflow
    "float64": ("synth_tiny", [*TORCH, "run.precision=float64", "optim.nesterov=true"]),
    "adamw": ("synth_tiny", [*TORCH, "optim.kind=adamw", "head.rule=adamw", "data.threads=1"]),
    "workers": ("synth_tiny", [*TORCH, "data.workers=1", "data.augment=lowlight", "data.block=40"]),
    "f2c": ("synth_tiny_f2c", QUEUE),
    "dcq": ("synth_tiny_dcq", QUEUE),
    "attfc": ("synth_tiny_attfc", QUEUE),
    "vit": ("wf42m_vit_t_pfc03_8gpu", ["backbone.options.depth=1", "backbone.options.mask=0.1",
                                       "data.workers=0", "data.batch=4", "head.kernels=torch"]),
}  # fmt: skip


def run(made: Any, case: str, world: World, out: Path, *more: str) -> None:
    """Train for three steps."""
    base, sets = CASES[case]
    common = [f"data.path={made.data}", "run.device=cuda", "run.tensorboard=false",
              "data.batch=12", "schedule.max_steps=3", "schedule.warmup=0", "run.log_every=1",
              "run.save_epochs=false"]  # fmt: skip
    recipe = load(shelf.find("train", base), Recipe, [*common, *sets, *more])
    loop.train(build(recipe, world, out))


def train(made: Any, case: str, world: World, out: Path, *more: str) -> list[Any]:
    """Do the same; return losses and accuracies, then every tensor of the checkpoint."""
    run(made, case, world, out, *more)
    entries = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    told = [
        entry.get("loss", entry.get("accuracy"))
        for entry in entries
        if entry["kind"] not in ("save", "start")
    ]
    saved = checkpoint.newest(out / "checkpoints")
    assert saved is not None
    tensors = {
        f"{path.name}/{name}": tensor
        for path in sorted(saved.path.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }
    return [told, tensors]


SAMPLED = {("index", "nn/heads/sample.py:sampled_classes"): 1}  # how many classes play
TARGETS = {("read", "nn/heads/softmax.py:__init__"): 1}  # where each block's targets begin
LOSS = {("read", "train/loop.py:train_step"): 1}  # loss and gradient norm, together
QUEUED = {("read", "nn/heads/feature_rows.py:cut"): 1,
          ("read", "nn/heads/class_queue.py:forward"): 1,
          ("repeat_interleave", "nn/heads/feature_rows.py:rows_of"): 1}  # fmt: skip
# all that a step waits for, between two lines of the log, on one rank
WAITS: dict[str, dict[tuple[str, str], int]] = {
    "float32": SAMPLED | TARGETS | LOSS,
    "bf16": dict.fromkeys(SAMPLED | TARGETS, 2) | LOSS  # two micro-batches, and joining them
            | {("_unique2", "nn/heads/partial_fc.py:_joined"): 1},
    "fp16": SAMPLED | TARGETS | LOSS | {("read", "train/loop.py:apply"): 1},
    "f2c": {("read", "nn/heads/class_pool.py:forward"): 1,
            ("read", "nn/heads/softmax.py:__init__"): 4} | LOSS,
    "dcq": QUEUED | TARGETS | LOSS,
}  # fmt: skip
SMALL = 64 << 10  # bytes: a copy of more from pageable memory waits for the device


@pytest.mark.parametrize("case", WAITS)
def test_what_a_step_waits_for(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    real, seen = loop.train_step, list[Any]()

    def step(*args: Any) -> Any:
        seen.append([dict(card.BOOK.waits), [*card.BOOK.copies]])
        card.BOOK.clear()
        return real(*args)

    monkeypatch.setattr(loop, "train_step", step)
    with card.pretended():
        train(made, case, join("cuda"), tmp_path, "run.log_every=100")
    waits, copies = seen[-1]  # from the begin of the last step but one to that of the last
    assert {key: n for key, n in waits.items() if n} == WAITS[case]
    assert [one for one in copies if "pageable" in one[0] and one[1] > SMALL] == []
    assert {kind for kind, size, _ in copies if size > SMALL} == {"in, pinned"}  # the images


def equal(one: list[Any], other: list[Any]) -> None:
    assert one[0] == other[0] and len(one[0]) >= 3
    assert one[1].keys() == other[1].keys() and len(one[1]) > 50
    assert [name for name in one[1] if not torch.equal(one[1][name], other[1][name])] == []


SLOW = {"vit"}


@pytest.mark.parametrize(
    "case", [pytest.param(one, marks=[pytest.mark.slow] * (one in SLOW)) for one in CASES]
)
def test_three_steps_are_the_cpu_s_to_the_bit(made: Any, tmp_path: Path, case: str) -> None:
    with card.pretended():
        found = train(made, case, join("cuda"), tmp_path / "card")
    equal(found, train(made, case, World(), tmp_path / "cpu"))


def test_saved_resumed_evaluated_and_used(made: Any, tmp_path: Path) -> None:
    more = [f"run.val=['{made.pairs}']", "run.eval_every=2", "run.save_every=2"]
    whole = train(made, "float32", World(), tmp_path / "cpu", *more)
    with card.pretended():
        world = join("cuda")
        train(made, "float32", world, tmp_path / "card", *more, "schedule.max_steps=2")
        equal(train(made, "float32", world, tmp_path / "card", *more), whole)
        places = {at for kind, size, at in card.BOOK.copies if "pageable" in kind and size > SMALL}
        assert places == {"train/loop.py:embed"}  # images to verify on
        images = torch.randint(0, 256, (3, 112, 112, 3), dtype=torch.uint8).numpy()
        found = open_model(tmp_path / "card", device="cuda").embed(images)
        taught = [f"teacher.model={tmp_path / 'card'}", "run.precision=bf16"]
        student = train(made, "float32", world, tmp_path / "student", *taught)
    assert (found == open_model(tmp_path / "cpu").embed(images)).all()
    equal(student, train(made, "float32", World(), tmp_path / "student on the cpu", *taught))


def test_images_are_copied_while_the_batch_before_is_used() -> None:
    batches = [
        Batch(torch.full((2, 4, 4, 3), i, dtype=torch.uint8), *[None] * 6)  # type: ignore[arg-type]
        for i in range(3)
    ]
    assert list(loop.ahead(iter(batches), torch.device("cpu"))) == batches
    with card.pretended() as book:
        card._Stream.waited.clear()
        found = loop.ahead(iter(batches), card.CUDA)
        for number, copied in enumerate((2, 3, 3)):
            batch = next(found)
            assert len(book.copies) == copied and card.on_card(batch.image)
            assert int(batch.image[0, 0, 0, 0]) == number
            # its stream waited for the copy, and its memory for its stream
            assert len(card._Stream.waited) == number + 1 and book.held[-1] is batch.image
        assert next(found, None) is None
        assert {at for _, _, at in book.copies} == {"train/loop.py:ahead"}


def test_search_and_all_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    label_n = torch.arange(140).repeat_interleave(5)
    face_nD = torch.randn(700, 32, generator=generator)
    face_nD += 2 * torch.randn(140, 32, generator=generator)[label_n]

    def found(device: str) -> list[Any]:
        close = pairs.pairs_above(face_nD.numpy(), 0.5, engine="torch", device=device, block=128)
        rates = all_pairs(face_nD.numpy(), label_n.numpy(), device=device, block=128)
        return [close.a.tolist(), close.b.tolist(), close.cosine.tolist(), rates.tar_at_far]

    with card.pretended():
        on_card = found("cuda")
    assert on_card == found("cpu") and len(on_card[0]) > 100


@pytest.mark.parametrize("block", [37, 128, 2048])
def test_search_in_int8(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pairs of a float64 brute force, one-hot rows among them; the rows cross over once."""
    monkeypatch.setattr(screens, "SPAN", 256)
    product, seen = torch._int_mm, list[bool]()

    def checked(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
        """Multiply as CUDA would: it takes no other shapes."""
        (n, dim), (_, m) = one.shape, two.shape
        seen.append(n > 16 and dim % 8 == 0 and m % 8 == 0 and two.T.is_contiguous())
        return product(one, two)

    monkeypatch.setattr(torch, "_int_mm", checked)
    generator = np.random.default_rng(0)
    x_ND = generator.standard_normal((700, 33)) + 2 * generator.standard_normal((140, 33))[
        np.arange(700) % 140]  # fmt: skip
    x_ND[:40] *= np.eye(33)[np.arange(40) % 33]
    unit_ND = pairs.unit64(x_ND)
    a, b = np.triu_indices(700, 1)
    cosine = (unit_ND[a] * unit_ND[b]).sum(axis=1)
    for threshold in (0.5, -0.2):
        with card.pretended() as book:
            found = pairs.pairs_above(x_ND, threshold, device="cuda", block=block)
            assert found.engine == "int8" and book.launches["_int_mm"] > 0
            rows = [size for _, size, _ in book.copies if size == 700 * 48]
        keep = cosine >= threshold
        assert len(a[keep]) > 1000 and len(rows) == 1
        np.testing.assert_array_equal(found.a, a[keep])
        np.testing.assert_array_equal(found.b, b[keep])
        np.testing.assert_array_equal(found.cosine, cosine[keep])
    assert seen and all(seen)
    with card.pretended((7, 0)):
        assert pairs.choose("auto", "cuda") == "torch"
        with pytest.raises(UsageError, match=r"GL0002.*expected compute capability 7.5"):
            pairs.choose("int8", "cuda")
        with pytest.raises(UsageError, match=r"GL0002.*does not run on cuda"):
            pairs.choose("faiss", "cuda")
        with pytest.raises(ResourceError, match=r"GL0002.*device cuda:7 was asked for"):
            pairs.choose("auto", "cuda:7")
    with pytest.raises(ResourceError, match=r"GL0002.*device cuda was asked for, torch finds none"):
        pairs.choose("auto", "cuda")
