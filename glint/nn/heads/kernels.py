# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""Triton kernels of the Partial FC head: no logit reaches memory.

`gather` makes a contiguous copy of a run of the rows that play, in the type of the matrix products,
and their lengths. `stream` reads it once: logits, streamed log-sum-exp and feature gradient of one
tile of samples over one strip of classes (as in FlashAttention, arXiv 2205.14135). `centre_grad`
owns a tile of rows: it makes their logits again and their gradient. `move` reads a row, its
momentum and its gradient once, does all that a rule does, and writes them back. No atomics: every
value has one writer and sums have one order, so the same card gives the same bits. What they
compute is `softmax.SoftmaxPass` and `updates`; the host's side is `fused`. Under TRITON_INTERPRET=1
they run on the CPU, for tests.

Pointers are named as tensors are elsewhere; a constexpr is in capitals. PRECISION is what tl.dot
does with float32 operands; sums inside a product are float32. WIDE: D rounded up to a power of two.

Two products follow each other in a loop. Where Triton sees that the second takes what the first
gave, it lays all warps along one side of the first tile; with 8 warps and 64 rows each half then
computes the same values. A condition that always holds keeps the first out of its sight: compiled
for sm_90 the loop has 36 matrix instructions instead of 68.
"""

# N samples over all ranks, k class rows that play, c class rows of this rank, D embedding,
# n one tile of SAMPLES samples, b one tile of CLASSES class rows,
# e masked entries, t samples whose target is on this rank, in order of its row

import triton
import triton.language as tl

from glint.rng import ODD_32

# whole numbers that differ between launches: not worth a compilation of their own
_LOOSE = ["samples", "rows", "first", "strip", "offset", "low_w", "high_w", "low_v", "high_v"]
_TINY = tl.constexpr(1e-12)  # as in batch.py
_LOG2_E = tl.constexpr(1.4426950408889634)
_ODD0 = tl.constexpr(ODD_32[0])
_ODD1 = tl.constexpr(ODD_32[1])


@triton.jit
def _inside(live, column, D: tl.constexpr, WIDE: tl.constexpr):
    """Return the mask of a tile of rows."""
    inside = live[:, None]
    if WIDE != D:
        inside = inside & (column < D)[None, :]
    return inside


@triton.jit
def _table_rows(index_k, row_b, live_b, first, ALL: tl.constexpr):
    """Return the rows of the table that the rows of this launch are."""
    if ALL:
        at_b = first.to(tl.int64) + row_b
    else:
        at_b = tl.load(index_k + row_b, mask=live_b, other=0)
    return at_b


@triton.jit
def _product(left, right, total, PRECISION: tl.constexpr):
    """Add a matrix product; the interpreter multiplies bf16's bits, so there they are widened."""
    if PRECISION == "widened":
        total = tl.dot(left.to(tl.float32), right.to(tl.float32), total, input_precision="ieee")
    else:
        total = tl.dot(left, right, total, input_precision=PRECISION)
    return total


@triton.jit
def _centres(weight_cD, momentum_cD, matrix_k4, row_b, live_b, place, inside,
             BEHIND: tl.constexpr):  # fmt: skip
    """Read rows of the table in float32, brought up to date by (ww, wv) where they are BEHIND."""
    centre_bD = tl.load(weight_cD + place, mask=inside, other=0.0).to(tl.float32)
    if BEHIND:
        momentum_bD = tl.load(momentum_cD + place, mask=inside, other=0.0).to(tl.float32)
        ww_b = tl.load(matrix_k4 + row_b * 4, mask=live_b, other=0.0)
        wv_b = tl.load(matrix_k4 + row_b * 4 + 1, mask=live_b, other=0.0)
        centre_bD = centre_bD * ww_b[:, None] + momentum_bD * wv_b[:, None]
    return centre_bD


@triton.jit
def _exp(logit, EXACT: tl.constexpr):
    """Return exp; where products are rounded, with a rounding more and fewer instructions."""
    return tl.exp(logit) if EXACT else tl.exp2(logit * _LOG2_E)


@triton.jit
def _hidden(logit, row, sample, threshold, mask_row_e, mask_column_e, mask_bounds, tile, first,
            CUT: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Take entries out of the denominator; row and sample broadcast against the logits."""
    if CUT:
        logit = tl.where(logit > threshold, -float("inf"), logit)
    if MASKED:
        for entry in range(tl.load(mask_bounds + tile), tl.load(mask_bounds + tile + 1)):
            masked_row = tl.load(mask_column_e + entry) - first
            masked_sample = tl.load(mask_row_e + entry)
            hit = (row == masked_row) & (sample == masked_sample)
            logit = tl.where(hit, -float("inf"), logit)
    return logit


@triton.jit(do_not_specialize=_LOOSE)
def gather(
    weight_cD,
    momentum_cD,
    index_k,
    matrix_k4,
    operand_kD,
    length_k,
    inverse_k,
    rows,
    first,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    ALL: tl.constexpr,
    BEHIND: tl.constexpr,
):
    """Copy `rows` rows of the table as products take them; write lengths and inverses.

    Pointers of k begin at the launch's first row. BEHIND: rows are brought up to date by (ww, wv).
    """
    row_b = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live_b = row_b < rows
    column = tl.arange(0, WIDE)
    inside = _inside(live_b, column, D, WIDE)
    at_b = _table_rows(index_k, row_b, live_b, first, ALL)
    place = at_b[:, None] * D + column[None, :]
    centre_bD = _centres(weight_cD, momentum_cD, matrix_k4, row_b, live_b, place, inside, BEHIND)
    length_b = tl.sqrt(tl.sum(centre_bD * centre_bD, axis=1))
    tl.store(length_k + row_b, length_b, mask=live_b)
    long_b = length_b > _TINY
    inverse_b = tl.where(long_b, 1.0 / tl.where(long_b, length_b, 1.0), 0.0)
    tl.store(inverse_k + row_b, inverse_b, mask=live_b)
    packed = row_b[:, None] * D + column[None, :]
    tl.store(operand_kD + packed, centre_bD.to(operand_kD.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=_LOOSE)
def stream(
    unit_ND,
    operand_kD,
    inverse_k,
    target_N,
    largest_SN,
    sum_SN,
    feature_grad_SND,
    mask_row_e,
    mask_column_e,
    mask_bounds,
    samples,
    rows,
    first,
    strip,
    scale,
    threshold,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    SAMPLES: tl.constexpr,
    CLASSES: tl.constexpr,
    CUT: tl.constexpr,
    MASKED: tl.constexpr,
    LEARN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add strip S of this launch's rows to (largest, sum, gradient) of a tile of samples.

    Nothing is taken off a logit before its exponential, so no running maximum has to be followed:
    it is at most `scale`, and 2^31 times exp(64) is still a float32 (`softmax.STEEPEST`).
    """
    sample_n = tl.program_id(0) * SAMPLES + tl.arange(0, SAMPLES)
    live_n = sample_n < samples
    column = tl.arange(0, WIDE)
    inside = _inside(live_n, column, D, WIDE)
    flat = sample_n[:, None] * D + column[None, :]
    unit_nD = tl.load(unit_ND + flat, mask=inside, other=0.0)
    target_n = tl.load(target_N + sample_n, mask=live_n, other=-1) - first
    part = tl.program_id(1) * samples
    largest_bn = tl.full((CLASSES, SAMPLES), -float("inf"), tl.float32)
    sum_bn = tl.zeros((CLASSES, SAMPLES), tl.float32)
    feature_grad_SND += part.to(tl.int64) * D
    feature_grad_nD = tl.zeros((SAMPLES, WIDE), tl.float32)
    if LEARN:
        feature_grad_nD = tl.load(feature_grad_SND + flat, mask=inside, other=0.0)
    begin = tl.program_id(1) * strip
    stop = tl.minimum(begin + strip, rows)
    for at in range(begin, stop, CLASSES):
        row_b = at + tl.arange(0, CLASSES)
        live_b = row_b < stop
        centre_bD = tl.load(
            operand_kD + row_b[:, None] * D + column[None, :],
            mask=_inside(live_b, column, D, WIDE),
            other=0.0,
        )
        inverse_b = tl.load(inverse_k + row_b, mask=live_b, other=0.0)
        logit_bn = tl.zeros((CLASSES, SAMPLES), tl.float32)
        if samples > 0:  # always: see the head of this file
            logit_bn = _product(centre_bD, tl.trans(unit_nD), logit_bn, PRECISION)
        logit_bn = logit_bn * (inverse_b * scale)[:, None]
        gone = (row_b[:, None] == target_n[None, :]) | (row_b >= stop)[:, None]
        logit_bn = tl.where(gone, -float("inf"), logit_bn)
        logit_bn = _hidden(logit_bn, row_b[:, None], sample_n[None, :], threshold, mask_row_e,
                           mask_column_e, mask_bounds, at // CLASSES, first,
                           CUT, MASKED)  # fmt: skip
        largest_bn = tl.maximum(largest_bn, logit_bn)
        exp_bn = _exp(logit_bn, centre_bD.dtype == tl.float32)
        sum_bn += exp_bn
        if LEARN:
            weighed_bn = (exp_bn * inverse_b[:, None]).to(centre_bD.dtype)
            feature_grad_nD = _product(tl.trans(weighed_bn), centre_bD, feature_grad_nD, PRECISION)
    largest_n = tl.load(largest_SN + part + sample_n, mask=live_n, other=-float("inf"))
    largest_n = tl.maximum(largest_n, tl.max(largest_bn, axis=0))
    tl.store(largest_SN + part + sample_n, largest_n, mask=live_n)
    sum_n = tl.load(sum_SN + part + sample_n, mask=live_n, other=0.0)
    tl.store(sum_SN + part + sample_n, sum_n + tl.sum(sum_bn, axis=0), mask=live_n)
    if LEARN:
        tl.store(feature_grad_SND + flat, feature_grad_nD, mask=inside)


@triton.jit(do_not_specialize=_LOOSE)
def centre_grad(
    weight_cD,
    momentum_cD,
    index_k,
    matrix_k4,
    inverse_k,
    grad_kD,
    unit_ND,
    exact_ND,
    logsum_N,
    target_N,
    at_target_N,
    factor,
    sample_t,
    row_t,
    target_bounds,
    mask_row_e,
    mask_column_e,
    mask_bounds,
    samples,
    rows,
    first,
    scale,
    threshold,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    SAMPLES: tl.constexpr,
    CLASSES: tl.constexpr,
    ALL: tl.constexpr,
    CUT: tl.constexpr,
    MASKED: tl.constexpr,
    BEHIND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Make the gradient of a tile of rows, but for the part along each row, which `move` takes out.

    unit_ND: as products take it; exact_ND: in float32; factor: one number, upstream * scale / N.
    """
    tile = tl.program_id(0)
    row_b = tile * CLASSES + tl.arange(0, CLASSES)
    live_b = row_b < rows
    column = tl.arange(0, WIDE)
    inside = _inside(live_b, column, D, WIDE)
    at_b = _table_rows(index_k, row_b, live_b, first, ALL)
    place = at_b[:, None] * D + column[None, :]
    centre_bD = _centres(weight_cD, momentum_cD, matrix_k4, row_b, live_b, place, inside, BEHIND)
    operand_bD = centre_bD.to(unit_ND.dtype.element_ty)
    inverse_b = tl.load(inverse_k + row_b, mask=live_b, other=0.0)
    grad_bD = tl.zeros((CLASSES, WIDE), tl.float32)
    for at in range(0, samples, SAMPLES):
        sample_n = at + tl.arange(0, SAMPLES)
        live_n = sample_n < samples
        unit_nD = tl.load(
            unit_ND + sample_n[:, None] * D + column[None, :],
            mask=_inside(live_n, column, D, WIDE),
            other=0.0,
        )
        logsum_n = tl.load(logsum_N + sample_n, mask=live_n, other=float("inf"))
        target_n = tl.load(target_N + sample_n, mask=live_n, other=-1) - first
        logit_nb = tl.zeros((SAMPLES, CLASSES), tl.float32)
        if samples > 0:  # always
            logit_nb = _product(unit_nD, tl.trans(operand_bD), logit_nb, PRECISION)
        logit_nb = logit_nb * (inverse_b * scale)[None, :]
        logit_nb = tl.where(row_b[None, :] == target_n[:, None], -float("inf"), logit_nb)
        logit_nb = _hidden(logit_nb, row_b[None, :], sample_n[:, None], threshold, mask_row_e,
                           mask_column_e, mask_bounds, tile, first, CUT, MASKED)  # fmt: skip
        share_nb = tl.exp(logit_nb - logsum_n[:, None]).to(unit_nD.dtype)
        grad_bD = _product(tl.trans(share_nb), unit_nD, grad_bD, PRECISION)
    for own in range(tl.load(target_bounds + tile), tl.load(target_bounds + tile + 1)):
        sample = tl.load(sample_t + own)
        own_row = tl.load(row_t + own) - first
        exact_D = tl.load(exact_ND + sample * D + column, mask=column < D, other=0.0)
        share_b = tl.where(row_b == own_row, tl.load(at_target_N + sample), 0.0)
        grad_bD += share_b[:, None] * exact_D[None, :]
    grad_bD = grad_bD * (inverse_b * tl.load(factor))[:, None]
    tl.store(grad_kD + row_b[:, None] * D + column[None, :], grad_bD, mask=inside)


@triton.jit(do_not_specialize=_LOOSE)
def move(
    weight_cD,
    momentum_cD,
    index_k,
    matrix_k4,
    inverse_k,
    grad_kD,
    rows,
    first,
    keep,
    lr,
    momentum,
    decay,
    offset,
    low_w,
    high_w,
    half_w,
    low_v,
    high_v,
    half_v,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    ALL: tl.constexpr,
    MOMENTUM: tl.constexpr,
    BEHIND: tl.constexpr,
    STOCHASTIC: tl.constexpr,
):
    """Read rows and momentum, bring them up to date, take out the part along the row, move, write.

    keep: 1 - lr wd, for rows without MOMENTUM. BEHIND: by the matrices of `missed_decay` in
    `updates`. offset, low, high, half: see `_rounded`.
    """
    row_b = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live_b = row_b < rows
    column = tl.arange(0, WIDE)
    inside = _inside(live_b, column, D, WIDE)
    at_b = _table_rows(index_k, row_b, live_b, first, ALL)
    place = at_b[:, None] * D + column[None, :]
    packed = row_b[:, None] * D + column[None, :]
    inverse_b = tl.load(inverse_k + row_b, mask=live_b, other=0.0)
    grad_bD = tl.load(grad_kD + packed, mask=inside, other=0.0)
    weight_bD = tl.load(weight_cD + place, mask=inside, other=0.0).to(tl.float32)
    moving_bD = weight_bD
    if MOMENTUM:
        moving_bD = tl.load(momentum_cD + place, mask=inside, other=0.0).to(tl.float32)
    if BEHIND:
        ww_b = tl.load(matrix_k4 + row_b * 4, mask=live_b, other=0.0)
        wv_b = tl.load(matrix_k4 + row_b * 4 + 1, mask=live_b, other=0.0)
        vw_b = tl.load(matrix_k4 + row_b * 4 + 2, mask=live_b, other=0.0)
        vv_b = tl.load(matrix_k4 + row_b * 4 + 3, mask=live_b, other=0.0)
        now_bD = weight_bD * ww_b[:, None] + moving_bD * wv_b[:, None]
        moving_bD = moving_bD * vv_b[:, None] + weight_bD * vw_b[:, None]
        weight_bD = now_bD
    along_b = tl.sum(grad_bD * weight_bD, axis=1) * inverse_b * inverse_b
    grad_bD = grad_bD - along_b[:, None] * weight_bD
    if MOMENTUM:
        moving_bD = moving_bD * momentum + grad_bD + decay * weight_bD
        weight_bD = weight_bD - lr * moving_bD
        if STOCHASTIC:
            moving_bD = _rounded(moving_bD, at_b + offset, column, low_v, high_v, half_v)
        tl.store(momentum_cD + place, moving_bD.to(momentum_cD.dtype.element_ty), mask=inside)
    else:
        weight_bD = weight_bD * keep - lr * grad_bD
    if STOCHASTIC:
        weight_bD = _rounded(weight_bD, at_b + offset, column, low_w, high_w, half_w)
    tl.store(weight_cD + place, weight_bD.to(weight_cD.dtype.element_ty), mask=inside)


@triton.jit
def _rounded(value_bD, class_b, column, low, high, half_h):
    """Round to bf16 up or down by chance, with the bits of `storage.noise`, still as float32.

    low, high: the key's low 31 bits and the 32 above them as int32; half_h: hashes of column pairs.
    """
    mixed_b = (class_b ^ low) * _ODD0 ^ (high.to(tl.int64) & 0xFFFFFFFF)
    mixed_b = (mixed_b ^ (mixed_b >> 29)) & 0x7FFFFFFF
    mixed_b = ((mixed_b * _ODD1) >> 13).to(tl.int32)
    mixed_bD = mixed_b[:, None] ^ tl.load(half_h + column // 2)[None, :]
    mixed_bD = mixed_bD * _ODD0
    mixed_bD = mixed_bD ^ ((mixed_bD >> 15) & 0x1FFFF)
    mixed_bD = mixed_bD * _ODD1
    mixed_bD = mixed_bD ^ ((mixed_bD >> 16) & 0xFFFF)
    noise_bD = tl.where((column % 2 == 0)[None, :], (mixed_bD << 16) >> 16, mixed_bD >> 16)
    bits_bD = value_bD.to(tl.int32, bitcast=True) + noise_bD + 32768
    return (bits_bD & -65536).to(tl.float32, bitcast=True)
