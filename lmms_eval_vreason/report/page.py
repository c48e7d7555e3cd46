"""Self-contained HTML pages. Every text that a model, a task or a user wrote is escaped."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import pandas as pd

from lmms_eval_vreason.report import tables
from lmms_eval_vreason.report.compare import Comparison

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.86rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.28rem 0.7rem; text-align: right; white-space: nowrap; vertical-align: top; }
th { border-bottom: 2px solid #333; }
td.text, th.text, th.long { text-align: left; }
td.long { white-space: normal; overflow-wrap: anywhere; text-align: left; }
tr.block td { border-top: 1px solid #bbb; } tr.published td { color: #666; font-style: italic; }
.notes { font-size: 0.82rem; color: #444; } .warning { border-left: 4px solid #D55E00; padding: 0.4rem 0.8rem;
background: #fdf3ec; margin: 0.4rem 0; overflow-wrap: anywhere; }
figure { margin: 1.2rem 0; } figure img { width: 48rem; max-width: 100%; height: auto; }
figcaption { font-size: 0.84rem; color: #444; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f6; padding: 0.6rem; margin: 0.3rem 0;
font-size: 0.82rem; max-height: 26rem; overflow-y: auto; }
.pair { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 1rem; }
.right { border-top: 4px solid #0072B2; } .wrong { border-top: 4px dashed #D55E00; }
@media (max-width: 45rem) { .pair { grid-template-columns: 1fr; } }
@media print { body { max-width: none; } pre { max-height: none; } }
"""

CAPTIONS = {
    "differences": "Difference of each run to the first by benchmark, with 95% intervals.",
    "efficiency": "Score against length: further up is better, further left is cheaper.",
    "entropy": "Mean entropy of the next token against the token's index, raw and as moving average.",
    "peak": "Where the moving average of the entropy peaks, and how high (median, quartiles, 5 to 95%).",
    "shift": "How far the value cache has been turned: ‖ΔV‖/‖V‖ over the video tokens.",
    "steps": "Due steps of one sample a run (median number of updates): the switch α, and ΔH on the same token.",
}
_TEXT_COLUMNS = ("Benchmark", "Run", "Test", "Model")
_LONG_COLUMNS = ("Model arguments", "Settings", "Steering")


def page(title: str, body: str) -> str:
    """A whole HTML document; ``body`` is markup, ``title`` is text."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )


def html_table(frame: pd.DataFrame) -> str:
    """A table; a new value in the first column starts a block, whose repeats are left blank."""
    head = "".join(f'<th class="{_class(column)}">{escape(str(column))}</th>' for column in frame.columns)
    rows, previous = [], None
    for row in frame.astype(str).itertuples(index=False):
        kinds = ["block"] * (row[0] != previous) + ["published"] * (tables.MARK in row[1])
        first = "" if row[0] == previous else row[0]
        cells = "".join(
            f'<td class="{_class(column)}">{escape(cell)}</td>'
            for column, cell in zip(frame.columns, (first, *row[1:]), strict=True)
        )
        rows.append(f'<tr class="{" ".join(kinds)}">{cells}</tr>')
        previous = row[0]
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _class(column: str) -> str:
    return "long" if column in _LONG_COLUMNS else "text" if column in _TEXT_COLUMNS else ""


def paragraphs(sentences: Sequence[str], kind: str) -> str:
    """One paragraph of a CSS class a sentence."""
    return "".join(f'<p class="{kind}">{escape(sentence)}</p>' for sentence in sentences)


def report_page(comparison: Comparison, images: Mapping[str, bytes]) -> str:
    """The report as one self-contained page.

    Args:
        comparison: what to show.
        images: name → PNG, of the figures in ``CAPTIONS``.
    """
    names = [label.name for label in comparison.labels]
    parts = ["<h1>Comparison of runs</h1>", f"<p>{escape(' · '.join(names))}</p>"]
    parts.append(paragraphs(comparison.warnings, "warning"))
    parts += ["<h2>Scores</h2>", html_table(tables.score_table(comparison))]
    parts.append(f'<div class="notes">{paragraphs(tables.footnotes(comparison), "note")}</div>')
    parts += ["<h2>Cost</h2>", html_table(tables.cost_table(comparison))]
    if comparison.steering:
        parts += ["<h2>Is it on?</h2>", html_table(tables.steering_table(comparison))]
    if images:
        parts.append("<h2>Figures</h2>")
    for name, content in images.items():
        caption = escape(CAPTIONS[name])
        image = f'<img src="data:image/png;base64,{base64.b64encode(content).decode()}" alt="{caption}">'
        parts.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    parts += ["<h2>Runs</h2>", html_table(tables.settings_table(comparison))]
    if comparison.notices:
        parts += ["<h2>Files</h2>", paragraphs(comparison.notices, "notes")]
    return page("Comparison of runs: " + ", ".join(names), "\n".join(parts))


def write_page(text: str, path: Path) -> Path:
    """Writes a page and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
