"""Compile recorded launches for a card that is not here, and ask ptxas what they take.

A child process: reads what record.py printed, prints a line of JSON for each signature.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from glint.nn.heads import kernels

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def assembled(ptx: str) -> dict[str, int]:
    """Return registers of a thread, and bytes spilled, as ptxas says them."""
    target = re.search(r"\.target\s+(\w+)", ptx)
    assert target, ptx[:200]
    tool, newer = TOOLS / "ptxas", TOOLS / "ptxas-blackwell"
    version = re.search(r"\.version\s+(\d+)\.(\d+)", ptx)
    assert version, ptx[:200]
    if (int(version[1]), int(version[2])) > (8, 8) and newer.exists():
        tool = newer
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        words = [str(tool), "-v", f"--gpu-name={target[1]}", file.name, "-o", "/dev/null"]
        told = subprocess.run(words, capture_output=True, text=True, check=True).stderr

    def number(pattern: str) -> int:
        found = re.search(pattern, told)
        assert found, told
        return int(found[1])

    return {"registers": number(r"Used (\d+) registers"),
            "spilled": number(r"(\d+) bytes spill stores")}  # fmt: skip


def offsets(ir: str) -> dict[str, list[str]]:
    """Return how wide each pointer's offsets are, by the argument that it began as."""
    head = re.search(r"tt\.func public @\w+\((.*?)\)\s*attributes", ir, re.DOTALL)
    assert head, ir[:200]
    origin = {name: name.strip("%") for name in re.findall(r"(%\w+): !tt\.ptr", head[1])}
    found: dict[str, set[str]] = {}
    step = re.compile(
        r"\s*(%[\w#:]+) = tt\.(addptr|splat|broadcast|expand_dims|bitcast) (%[\w#]+).*?: (.*)$"
    )
    for line in ir.splitlines():
        match = step.match(line)
        if match and match[3] in origin:
            origin[match[1]] = origin[match[3]]
            if match[2] == "addptr":
                wide = "i64" if "i64" in match[4].split(",")[-1] else "i32"
                found.setdefault(origin[match[3]], set()).add(wide)
    return {name: sorted(widths) for name, widths in found.items()}


def built(
    arch: int, name: str, types: dict[str, Any], constants: dict[str, Any], options: dict[str, int]
) -> dict[str, Any]:
    """Compile one signature; Triton takes a 1 for a constant, which none of these is."""
    kernel = getattr(kernels, name)
    names = list(kernel.arg_names)
    signature = {arg: "constexpr" if arg in constants else types[arg][0] for arg in names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, arg in enumerate(names)
        if arg in types and types[arg][1]
    }
    places = {(names.index(arg),): value for arg, value in constants.items()}
    source = ASTSource(kernel, signature, constexprs=places, attrs=aligned)
    chosen = {key: options[key] for key in ("num_warps", "num_stages") if key in options}
    code = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=chosen)
    ptx = code.asm["ptx"]
    return {
        "kernel": name, **{k: int(v) for k, v in constants.items() if isinstance(v, bool)},
        "D": constants["D"], "tile": constants.get("SAMPLES"), "shared": code.metadata.shared,
        **assembled(ptx), "wgmma": ptx.count("wgmma.mma_async"),
        "offsets": offsets(code.asm["ttir"]),
    }  # fmt: skip


def main(path: str, arch: str, *names: str) -> None:
    signatures = json.loads(Path(path).read_text())["signatures"][arch]
    for name, types, constants, options, used in signatures:
        if not names or name in names:
            line = {"for": used[0], **built(int(arch), name, types, constants, options)}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
