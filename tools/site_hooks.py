"""MkDocs' hooks: the site has the reference pages, and the pages that stand outside `docs/`.

A link between pages is written as it works in the repository; here it is turned to where the page is in the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

import reference_pages  # beside this file, where MkDocs looks
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent

OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "SECURITY.md": "project/security.md",
    "bench/README.md": "project/measurements.md",
}
"""Pages of the repository that stand outside `docs/`, and where they are in the site."""

_LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that `docs/` does not hold."""
    for name, text in reference_pages.pages().items():
        files.append(File.generated(config, f"reference/{name}", content=text))
    for path, place in OUTSIDE.items():
        files.append(File.generated(config, place, content=(ROOT / path).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn the links of a page to where their pages are."""
    place = page.file.src_uri
    if place.startswith("reference/"):
        return markdown
    path = {site: repository for repository, site in OUTSIDE.items()}.get(place, f"docs/{place}")

    def turned(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link[2]))
        in_site = OUTSIDE.get(target) or (target.removeprefix("docs/") if target.startswith("docs/") else None)
        if in_site is None:
            return link[0]  # a source file or folder: MkDocs names what is not found
        return f"{link[1]}{posixpath.relpath(in_site, posixpath.dirname(place) or '.')}{link[3]}"

    return _LINK.sub(turned, markdown)
