"""One section of a Markdown file between two marker comments, rewritten in place. What others wrote stays."""

from __future__ import annotations

from pathlib import Path

BEGIN = "<!-- bench-vllm begin -->"
END = "<!-- bench-vllm end -->"
TITLE = "# Results\n"


class MarkerError(ValueError):
    """The markers of a file do not enclose one section."""


def replace(text: str, section: str) -> str:
    """The text with the section between its markers; at the end where it has none yet.

    Raises:
        MarkerError: one of the markers is missing, doubled or in the wrong place.
    """
    framed = f"{BEGIN}\n{section.strip()}\n{END}"
    counts = text.count(BEGIN), text.count(END)
    if counts == (0, 0):
        return f"{text.rstrip()}\n\n{framed}\n"
    start, end = text.find(BEGIN), text.find(END)
    if counts != (1, 1) or end < start:
        raise MarkerError(
            f"the section must stand between one {BEGIN!r} and one {END!r} after it; put that right first"
        )
    return text[:start] + framed + text[end + len(END) :]


def rewrite(path: Path, section: str) -> None:
    """Makes the file where there is none."""
    text = path.read_text() if path.exists() else TITLE
    path.write_text(replace(text, section))
