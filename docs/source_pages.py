"""A hook of mkdocs: a link of a page to a file outside docs/ leads to a page of the site that shows the file.

On a code host such a link leads to the file itself.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

LINK = re.compile(r"\]\(\.\./([^)#\s]+)\)")
LANGUAGES = {".py": "python", ".pyi": "python", ".yaml": "yaml"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every file or folder that a page links to."""
    root = Path(config.config_file_path).parent
    linked = {path for page in files.documentation_pages() for path in LINK.findall(page.content_string)}
    for path in sorted(linked):
        if (root / path).exists():  # else the link stays as it is, and the build warns of it
            content = _shown(path, root / path)
            files.append(File.generated(config, _page(path), content=content, inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links to these pages."""

    def moved(link: re.Match[str]) -> str:
        return f"]({_page(link[1])})" if files.get_file_from_path(_page(link[1])) else link[0]

    return markdown if page.file.generated_by else LINK.sub(moved, markdown)


def _page(path: str) -> str:
    return f"files/{path.rstrip('/')}.md"


def _shown(path: str, place: Path) -> str:
    """The Markdown of a page that shows a file, or the names in a folder; searches leave it out."""
    head = f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n"
    if place.is_dir():
        return head + "\n".join(f"* `{inner.name}`" for inner in sorted(place.iterdir()) if inner.name[0] not in "._")
    return f"{head}````{LANGUAGES.get(place.suffix, 'text')}\n{place.read_text(encoding='utf-8')}````\n"
