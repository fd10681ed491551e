"""A page of headings, sentences, tables and figures, written once and rendered as HTML and as Markdown."""

import base64
import dataclasses
import html
import pathlib
from collections.abc import Sequence
from typing import Any

Row = tuple[str, ...]

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #24292f; max-width: 1080px; margin: 2.5em auto; padding: 0 1.2em }
h1 { font-size: 1.7em } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #d8dee4 }
table { border-collapse: collapse; margin: 1em 0 } th, td { padding: .3em .9em .3em 0; text-align: left }
th { border-bottom: 1px solid #8c959f; font-weight: 600 } td { border-bottom: 1px solid #eaeef2 }
figure { margin: 1.2em 0 } img { max-width: 100% } figcaption { color: #57606a; font-size: .92em }
pre { background: #f6f8fa; padding: 1em; overflow-x: auto; font-size: .82em } .refused { color: #9a6700 }
"""


@dataclasses.dataclass
class Page:
    """Blocks in order; each is written as HTML and as Markdown."""

    blocks: list[tuple[str, Any]] = dataclasses.field(default_factory=list)

    def heading(self, text: str) -> None:
        self.blocks.append(("heading", text))

    def text(self, text: str) -> None:
        self.blocks.append(("text", text))

    def table(self, header: Row, rows: Sequence[Row]) -> None:
        self.blocks.append(("table", (header, tuple(rows))))

    def figure(self, path: pathlib.Path, caption: str) -> None:
        self.blocks.append(("figure", (path, caption)))

    def verbatim(self, text: str) -> None:
        self.blocks.append(("verbatim", text))

    def html(self, title: str) -> str:
        parts = [f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title>"]
        parts.append(f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>")
        for kind, value in self.blocks:
            if kind == "heading":
                parts.append(f"<h2>{html.escape(value)}</h2>")
            elif kind == "text":
                parts.append(f"<p>{html.escape(value)}</p>")
            elif kind == "verbatim":
                parts.append(f"<pre>{html.escape(value)}</pre>")
            elif kind == "figure":
                path, caption = value
                data = base64.b64encode(path.read_bytes()).decode("ascii")
                words = html.escape(caption)
                parts.append(f"<figure><img alt='{words}' src='data:image/png;base64,{data}'>")
                parts.append(f"<figcaption>{words}</figcaption></figure>")
            else:
                header, rows = value
                cells = ["".join(f"<th>{html.escape(cell)}</th>" for cell in header)]
                cells += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
                parts.append("<table>" + "".join(f"<tr>{line}</tr>" for line in cells) + "</table>")
        return "\n".join(parts) + "</html>\n"

    def markdown(self, title: str) -> str:
        parts = [f"# {title}"]
        for kind, value in self.blocks:
            if kind == "heading":
                parts.append(f"## {value}")
            elif kind == "text":
                parts.append(value)
            elif kind == "verbatim":
                parts.append(f"```\n{value}\n```")
            elif kind == "figure":
                path, caption = value
                parts.append(f"![{caption}]({path.name})\n\n{caption}")
            else:
                header, rows = value
                lines = [header, tuple("---" for _ in header), *rows]
                parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
        return "\n\n".join(parts) + "\n"
