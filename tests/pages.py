"""Reading pages as a browser does: well-formed or not, and what stands where."""

from collections import Counter
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "br", "col"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    children: "list[Element | str]" = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def all(self, tag: str, class_: str | None = None) -> "list[Element]":
        """Return the elements below, in order, that have a tag and a class."""
        found = []
        for child in self.children:
            if isinstance(child, str):
                continue
            if child.tag == tag and (class_ is None or class_ in (child.attributes.get("class") or "").split()):
                found.append(child)
            found += child.all(tag, class_)
        return found

    def section(self, title: str) -> "Element":
        """Return the section below a heading."""
        return next(one for one in self.all("section") if one.all("h2")[0].text == title)

    def rows(self) -> list[list[str]]:
        """Return the cells of all tables below, without their heads."""
        return [[cell.text for cell in row.all("td")] for body in self.all("tbody") for row in body.all("tr")]

    def tags(self) -> Counter[str]:
        found = Counter([self.tag])
        for child in self.children:
            if not isinstance(child, str):
                found += child.tags()
        return found


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open = [Element("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"<{tag}> has an attribute twice"
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data!r}")

    def unknown_decl(self, data: str) -> None:
        raise AssertionError(f"a declaration: {data!r}")


def read_page(text: str) -> Element:
    """Return the root of a page whose tags all match."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert len(reader.open) == 1, f"<{reader.open[-1].tag}> is not closed"
    (root,) = (child for child in reader.open[0].children if isinstance(child, Element))
    return root
