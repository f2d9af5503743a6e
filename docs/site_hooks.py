"""What mkdocs does beside building: links out of docs/ become names of files in the repository."""

from __future__ import annotations

import re
from typing import Any

RUN = re.compile(r"^```(bash|python) run$", re.MULTILINE)
OUT = re.compile(r"\[([^\]]+)\]\(\.\./([\w./-]+)\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the page without links to files that the site does not hold, its fences as mkdocs'."""
    markdown = RUN.sub(r"```\1", markdown)
    return OUT.sub(lambda m: m[1] if m[2] in m[1] else f"{m[1]} (`{m[2]}`)", markdown)


def on_post_page(output: str, **_: Any) -> str:
    """Take the script that lets search work from disk out of the site, not off the network."""
    return output.replace("https://unpkg.com/iframe-worker/shim", "site_worker.js")


def on_post_template(output_content: str, **_: Any) -> str:
    """Do the same on the page that a server shows where there is none."""
    return on_post_page(output_content)
