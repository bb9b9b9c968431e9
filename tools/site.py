"""What MkDocs does beside (``hooks`` of mkdocs.yml): links that leave the folder of the pages.

Pages link to files of the repository as they are read there. On the site such a link goes to the repository,
where its address is known (``REPOSITORY_URL``), and is the text alone where it is not.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrite the links of a page, as MkDocs asks its hooks to."""
    return outside_links(markdown, page.file.src_uri, config.repo_url or "")


def outside_links(text: str, source: str, repository: str) -> str:
    """Send links of the page ``source`` that leave its folder to the repository, or take them off."""

    def link(match: re.Match[str]) -> str:
        words, target = match.groups()
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(source), target.partition("#")[0]))
        if re.match(r"[a-z]+:|#", target) or path.startswith("docs/"):
            return match[0]
        return f"[{words}]({repository.rstrip('/')}/blob/main/{path})" if repository else words

    return re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", link, text)
