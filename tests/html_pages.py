"""Reading a page of HTML without a browser: its elements, its words, and what a browser would fetch for it."""

import re
from html.parser import HTMLParser

EMPTY = ("meta", "input", "rect", "path", "img", "br", "use", "link")
OTHERS = ("link", "iframe", "object", "embed", "base", "video", "audio", "source")


class Elements(HTMLParser):
    """Every element with its attributes, the embedded data, and all words outside of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open, self.data, self.words, self.code = [], [], "", [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in EMPTY:
            self.open.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        inside = self.open[-1] if self.open else ("", {})
        if inside[1].get("id") == "data":
            self.data += data
        elif inside[0] in ("style", "script"):
            self.code += data
        elif data.strip():
            self.words.append(" ".join(data.split()))

    def of(self, tag, kind):
        return [
            values for name, values in self.found if name == tag and kind in values.get("class", "").split()
        ]


def fetched_by(text):
    """What a browser would ask for to show this page, in addition to the page."""
    elements = Elements(text)
    wanted = re.findall(r"@import|url\((?!#)|fetch\(|XMLHttp|import\(|https?:", elements.code)
    for tag, attributes in elements.found:
        wanted += [tag] * (tag in OTHERS)
        for name in ("src", "srcset", "href", "xlink:href", "style", "data", "poster", "action"):
            value = attributes.get(name) or ""
            inside = value.startswith(("#", "data:image/png;base64,")) or name == "style"
            wanted += [f"{tag} {name}={value[:80]}"] * (name in attributes and not inside)
            wanted += re.findall(r"url\((?!#)", value)
    return wanted
