"""Print the Flesch reading ease of the pages: 100 is plain, 30 is hard.

206.835 - 1.015 words a sentence - 84.6 syllables a word (Flesch 1948); syllables are groups of
vowels. Code, tables and headings are left out; a name set as code counts as one short word.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")


def prose(text: str) -> list[str]:
    """Return the sentences of a page; a line of a list ends one."""
    lines = []
    for line in FENCE.sub("\n", text).splitlines():
        if line.lstrip().startswith(("#", "|", "!", "<", "---", "??")):
            line = ""
        lines.append(re.sub(r"^\s*([-*]|\d+\.)\s+", "\n", line))
    said = re.sub(r"`[^`]*`", "it", LINK.sub(r"\1", "\n".join(lines)))
    parts = (" ".join(part.split()) for part in re.split(r"\n\s*\n", said))
    ends = r"(?<=[.!?:])[\"')*]*\s+"
    return [one for part in parts for one in re.split(ends, part) if re.search(r"[a-z]", one)]


def syllables(word: str) -> int:
    """Count groups of vowels; an e at the end is silent."""
    word = word.lower()
    found = len(re.findall(r"[aeiouy]+", word))
    if word.endswith("e") and not word.endswith(("le", "ee")) and found > 1:
        found -= 1
    if word.endswith("ed") and not word.endswith(("ted", "ded")) and found > 1:
        found -= 1
    return max(found, 1)


def ease(text: str) -> tuple[float, float, int]:
    """Return the reading ease of a page, its words a sentence, and its words."""
    sentences = prose(text)
    words = [word for one in sentences for word in re.findall(r"[A-Za-z][A-Za-z'-]*", one)]
    if not words:
        return 100.0, 0.0, 0
    long = len(words) / len(sentences)
    per = sum(map(syllables, words)) / len(words)
    return 206.835 - 1.015 * long - 84.6 * per, long, len(words)


if __name__ == "__main__":
    print(f"{'page':<28} {'ease':>5} {'words a sentence':>16} {'words':>6}")
    for name in sys.argv[1:] or map(str, sorted(Path(__file__).parent.glob("*.md"))):
        score, long, count = ease(Path(name).read_text(encoding="utf-8"))
        print(f"{Path(name).name:<28} {score:5.1f} {long:16.1f} {count:6d}")
