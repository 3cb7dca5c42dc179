"""MkDocs hook: the pages that are made from the code.

- the reference: a page for each public package; of estimators and task families one for
  each module, and for each architecture the end of its own page;
- the notebooks, from their percent files;
- `lopax.some_name` in the text of any page becomes a link to the reference.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

import notebooks
import public
from public import Name

ROOT = public.ROOT
BY_MODULE = ("lopax.estimators", "lopax.tasks", "lopax.tasks.rl")
ARCHITECTURES = "lopax.architectures"
# Bases whose arguments are those of public classes.
BASES = ("lopax.estimators.antithetic",)
# Pages written by hand for rules that share a module or have none of their own.
PAGE_OF_MODULE = {"lopax.optax.hybrid": "hub"}

_CODE = re.compile(r"(```.*?```|~~~.*?~~~)", re.S)
_NAME = re.compile(r"(?<!\[)`(lopax(?:\.\w+)+)(\(\))?`(?!\])")
_known: set[str] = set()


def on_files(files: Files, config: Any) -> Files:
    """Adds the generated pages."""
    _known.clear()
    for path, text in (*reference(), *notebooks.pages(ROOT / "docs/notebooks")):
        files.append(File.generated(config, path, content=text))
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    files.append(
        File.generated(config, "contributing.md", content=text.replace("](docs/", "]("))
    )
    config.nav = filled(config.nav, [f.src_uri for f in files.documentation_pages()])
    return files


def filled(nav: list[Any], pages: list[str]) -> list[Any]:
    """The navigation with its short forms written out.

    `folder/`: the pages of a folder, its index first, subfolders as sections; `page?`:
    only if there is such a page; `*`: the pages named nowhere else.
    """
    text = repr(nav)
    folders = re.findall(r"'(\w+/)'", text)
    rest = [
        p
        for p in pages
        if repr(p)[:-1] not in text and not p.startswith(tuple(folders))
    ]

    def fill(entry: Any) -> list[Any]:
        if isinstance(entry, dict):
            ((title, inside),) = entry.items()
            inner = inside if isinstance(inside, list) else fill(inside)
            if isinstance(inside, list):
                inner = [e for part in inside for e in fill(part)]
            single = isinstance(inside, str) and inner == [inside]
            return [{title: inside if single else inner}]
        if entry == "*":
            return rest
        if entry.endswith("/"):
            return _folder(entry, pages)
        if entry.endswith("?"):
            return [entry[:-1]] if entry[:-1] in pages else []
        return [entry]

    return [e for part in nav for e in fill(part)]


def _folder(folder: str, pages: list[str]) -> list[Any]:
    """The entries of one folder of the navigation."""
    inside = [p for p in pages if p.startswith(folder)]
    direct = [p for p in inside if "/" not in p.removeprefix(folder)]
    direct.sort(key=lambda p: (not p.endswith("/index.md"), inside.index(p)))
    entries: list[Any] = []
    for page in direct:
        below = page.removesuffix(".md") + "/"
        deeper = [p for p in inside if p.startswith(below)]
        if deeper:
            title = f"lopax.{below.removeprefix(folder)[:-1].replace('_', '.')}"
            entries.append({title: [page, *sorted(deeper)]})
        else:
            entries.append(page)
    return entries


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links names, and ends the pages of architectures with their reference."""
    path = page.file.src_uri
    if not path.startswith("reference/"):
        markdown = link_names(markdown)
    if path.startswith("architectures/") and path != "architectures/index.md":
        module = module_of_page(Path(path).stem)
        markdown += f"\n\n## Reference\n\n{directive(module, heading_level=3)}"
    return markdown


def link_names(markdown: str) -> str:
    """`lopax.load_theta` -> a link, outside blocks of code."""

    def link(found: re.Match[str]) -> str:
        name, call = found[1], found[2] or ""
        return f"[`{name}{call}`][{name}]" if name in _known else found[0]

    parts = _CODE.split(markdown)
    return "".join(p if _CODE.match(p) else _NAME.sub(link, p) for p in parts)


def module_of_page(stem: str) -> str:
    """The module an architecture's page is about."""
    for module, page in PAGE_OF_MODULE.items():
        if page == stem:
            return module
    told_once = f"lopax.rules.{stem}"
    return told_once if public.source_of(told_once) else f"{ARCHITECTURES}.{stem}"


def reference() -> Iterator[tuple[str, str]]:
    """(path, Markdown) of every page of the reference, and of the folder of
    architectures."""
    places: dict[str, str] = {}  # canonical name -> page
    stems = [p.stem for p in sorted((ROOT / "docs/architectures").glob("*.md"))]
    for stem in stems:
        for name in public.names_of(module_of_page(stem)):
            places[name.canonical] = f"../architectures/{stem}.md"
            _known.add(name.canonical)
    rows = [
        f"- [`{stem}`]({stem}.md): {public.summary(module_of_page(stem))}"
        for stem in stems
    ]
    yield "architectures/index.md", "# Architectures\n\n" + "\n".join(rows) + "\n"

    index = []
    for package in public.PACKAGES:
        page = f"{package.removeprefix('lopax.').replace('.', '_')}.md"
        index.append(f"- [`{package}`]({page}): {public.summary(package)}")
        yield from package_pages(package, page, places)
    text = "# Reference\n\nEverything public, generated from the code.\n\n"
    yield "reference/index.md", text + "\n".join(index) + "\n"


def package_pages(
    package: str, page: str, places: dict[str, str]
) -> Iterator[tuple[str, str]]:
    """A package's page: a table of its names, and what is documented nowhere else."""
    names = public.names_of(package)
    own: list[Name] = []
    modules: dict[str, list[Name]] = {}
    for name in names:
        _known.update({name.public, name.canonical})
        if name.canonical in places:
            continue
        if package in BY_MODULE and name.module != package:
            stem = f"{page.removesuffix('.md')}/{name.module.rsplit('.', 1)[-1]}.md"
            places[name.canonical] = stem
            modules.setdefault(name.module, []).append(name)
        else:
            places[name.canonical] = page
            own.append(name)
    rows = "".join(
        f"| [`{n.name}`][{n.canonical}] | {public.summary(n.module, n.name)} |\n"
        for n in names
    )
    about = public.summary(package)
    text = f"# {package}\n\n{about}.\n\n| name | |\n|---|---|\n{rows}\n"
    yield (
        f"reference/{page}",
        text + "\n".join(directive(n.canonical, n.public) for n in own),
    )
    for module in (b for b in BASES if b.rpartition(".")[0] == package):
        stem = module.rsplit(".", 1)[-1]
        where = f"reference/{page.removesuffix('.md')}/{stem}.md"
        yield where, f"# {stem}\n\n{directive(module)}"
    for module, members in modules.items():
        body = "\n".join(
            directive(n.canonical, n.public, inherited_members=True) for n in members
        )
        yield (
            f"reference/{places[members[0].canonical]}",
            f"# {module.rsplit('.', 1)[-1]}\n\n{public.about(module)}\n\n{body}",
        )


def directive(identifier: str, shown: str | None = None, **options: Any) -> str:
    """A block that mkdocstrings fills in; `shown`: the name users import it by."""
    anchor = ""
    if shown is not None and shown != identifier:
        options |= {"heading": shown, "toc_label": shown.rsplit(".", 1)[-1]}
        anchor = f"[](){{#{shown}}}\n\n"
    lines = "".join(f"        {key}: {value!r}\n" for key, value in options.items())
    return f"{anchor}::: {identifier}\n" + (f"    options:\n{lines}" if lines else "")
