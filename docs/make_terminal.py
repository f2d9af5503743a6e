"""Write docs/img/terminal.svg: the commands of README's block that runs, and what they print.

Lines appear one after the other; where nothing moves (no CSS, less motion wished for) all stand.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "img" / "terminal.svg"
SIZE, LEADING, WIDE, EDGE = 14, 20, 96, 18  # pixels, pixels, characters, pixels
STYLE = """\
text { font: 14px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #d5dde5; }
.c { fill: #7fd4c1; font-weight: bold; }
@keyframes wait { from, to { opacity: 0; } }
@media (prefers-reduced-motion: no-preference) { text { animation: wait linear; } }
"""


def commands() -> list[str]:
    """Return the command lines of README's block."""
    (block,) = re.findall(r"```bash run\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return list(block.splitlines())


def lines() -> list[str]:
    """Run the commands in an empty folder and return what a terminal shows."""
    shown = []
    with tempfile.TemporaryDirectory() as folder:
        for line in commands():
            run = [sys.executable, "-m", *line.split()]
            done = subprocess.run(run, cwd=folder, capture_output=True, text=True, check=True)
            shown += [f"$ {line}", *done.stdout.rstrip("\n").splitlines(), ""]
    shown = [re.sub(r" in [\d.]+ s, [\d.]+ GB/s$", "", line) for line in shown]
    return [line if len(line) <= WIDE else line[: WIDE - 3] + "..." for line in shown[:-1]]


def picture() -> str:
    """Return the SVG as text."""
    said, now = [], 0.0
    for number, line in enumerate(lines()):
        now += 1.2 if line.startswith("$") else 0.12
        kind = ' class="c"' if line.startswith("$") else ""
        place = f'x="{EDGE}" y="{EDGE + SIZE + LEADING * number}"'
        style = f'style="animation-duration: {now:.2f}s" xml:space="preserve"'
        said.append(f"<text {place}{kind} {style}>{escape(line)}</text>")
    wide, high = round(WIDE * 8.43) + 2 * EDGE, LEADING * len(said) + 2 * EDGE
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}"'
    title = "glint in a terminal: a synthetic world is drawn, packed and verified"
    box = f'<rect width="{wide}" height="{high}" rx="8" fill="#15202b"/>'
    body = [f'{head} role="img">', f"<title>{title}</title>", f"<style>{STYLE}</style>", box]
    return "\n".join([*body, *said, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
