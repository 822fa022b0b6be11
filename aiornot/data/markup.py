"""HTML in small pieces: escaped text, tables that scroll, bars and histograms, one style sheet.

``data/audit_page.py`` and ``delivery/errors_page.py`` build their pages from them. What is not
``Html`` has not been escaped yet, and mypy tells the two apart.
"""

import base64
import html
import re
from collections.abc import Container, Mapping, Sequence
from typing import NewType

from aiornot.data.hdf5 import CLASSES

Html = NewType("Html", str)

LONGEST = 80
"""Characters of a text of the data, such as an id, that are shown."""

# No script runs and nothing is fetched, even if a text of the data were to slip through.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_STYLE = """
:root { color-scheme: light dark; --page: #fbfbf9; --card: #fff; --ink: #1c1d1f; --dim: #63666b;
  --line: #dfe0dc; --real: #2f6fb5; --generated: #d9722b; --bad: #b3261e; --warn: #9a6a00;
  --good: #2c7a45; --edge: #0000002e; }
@media (prefers-color-scheme: dark) { :root { --page: #16171a; --card: #1f2125; --ink: #e8e8e6;
  --dim: #a0a3a8; --line: #35383d; --real: #6fa8e6; --generated: #f09a5b; --bad: #f2857c;
  --warn: #e0b04a; --good: #74c48c; --edge: #000000b0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 4rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .4rem; }
h3 { font-size: .95rem; margin: 1.2rem 0 .3rem; }
p { margin: .4rem 0; max-width: 46rem; }
ul { margin: .4rem 0; padding-left: 1.2rem; max-width: 46rem; }
.dim, figcaption, caption { color: var(--dim); font-size: .85rem; }
code { font: .9em/1.3 ui-monospace, Menlo, Consolas, monospace; unicode-bidi: isolate;
  overflow-wrap: anywhere; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .4rem;
  padding: .6rem .9rem; margin: .4rem 0; white-space: pre-wrap; overflow-wrap: anywhere;
  font: .85rem/1.5 ui-monospace, Menlo, Consolas, monospace; }
pre code { display: block; font: inherit; padding-left: 2ch; text-indent: -2ch; }
pre span { display: inline-block; max-width: 100%; text-indent: 0; }
.note { display: inline-block; border: 1px solid var(--warn); color: var(--warn);
  border-radius: .4rem; padding: .1rem .6rem; font-size: .9rem; margin: .3rem 0; }
.verdict { border: 1px solid var(--line); border-left: .4rem solid var(--tone);
  background: var(--card); border-radius: .4rem; padding: .7rem 1rem; margin: 1rem 0; }
.verdict strong { color: var(--tone); }
.leak { --tone: var(--bad); } .undecided { --tone: var(--warn); } .none { --tone: var(--good); }
.tiles { display: flex; flex-wrap: wrap; gap: .6rem; margin: .8rem 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: .4rem;
  padding: .5rem .9rem; min-width: 7rem; }
.tile b { display: block; font-size: 1.35rem; line-height: 1.2;
  font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; margin: .5rem 0; background:
  linear-gradient(to right, var(--page) 40%, transparent) left / 2.5rem 100% local,
  linear-gradient(to left, var(--page) 40%, transparent) right / 2.5rem 100% local,
  linear-gradient(to right, var(--edge), transparent) left / .9rem 100%,
  linear-gradient(to left, var(--edge), transparent) right / .9rem 100%;
  background-repeat: no-repeat; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .3rem .9rem .3rem 0; text-align: right; vertical-align: top;
  border-bottom: 1px solid var(--line); white-space: nowrap; font-variant-numeric: tabular-nums; }
th { font-weight: 600; color: var(--dim); }
th:first-child, td:first-child, .left, .wide { text-align: left; }
td.wide { white-space: normal; min-width: min(16rem, 52vw); text-align: left; }
.scroll th:first-child, .scroll td:first-child { position: sticky; left: 0;
  background: var(--page); }
.tables { display: flex; flex-wrap: wrap; gap: 0 2.5rem; }
.tables > * { min-width: 0; }
.bars { display: inline-block; width: 9rem; vertical-align: middle; }
.bars i { display: block; height: .42rem; border-radius: 2px; margin: 1px 0; min-width: 1px; }
.track { position: relative; display: inline-block; width: 9rem; height: .6rem; border-radius: 2px;
  background: var(--line); vertical-align: middle; overflow: hidden; }
.track i { position: absolute; inset: 0 auto 0 0; background: var(--dim); }
.track i.over { background: var(--bad); }
.track u { position: absolute; top: 0; bottom: 0; width: 2px; background: var(--ink); }
.track s { position: absolute; top: 40%; bottom: 40%; background: var(--ink); }
.track.short { width: 5.5rem; }
.tall { max-height: 24rem; overflow-y: auto; }
i.real, .key.real::before { background: var(--real); }
i.generated, .key.generated::before { background: var(--generated); }
rect.real { fill: var(--real); } rect.generated { fill: var(--generated); }
.key { margin-right: .8rem; white-space: nowrap; }
.key::before { content: ""; display: inline-block; width: .7em; height: .7em; border-radius: 2px;
  margin-right: .35em; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem; }
figure { margin: 0; }
.chart { background: var(--card); border: 1px solid var(--line); border-radius: .4rem;
  padding: .6rem .8rem; }
.chart svg { display: block; width: 100%; height: 5rem; border-bottom: 1px solid var(--line); }
.axis { display: flex; justify-content: space-between; font-size: .75rem; color: var(--dim); }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.5rem, 1fr));
  gap: .6rem; }
.samples img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain;
  background: var(--line); border-radius: .3rem .3rem 0 0; border-bottom: .25rem solid; }
.samples .real img { border-color: var(--real); }
.samples .generated img { border-color: var(--generated); }
summary { cursor: pointer; }
.samples figcaption { font-size: .72rem; line-height: 1.25; padding-top: .2rem; }
@media (max-width: 34rem) { .bars, .track { width: 4.5rem; } .track.short { width: 2.6rem; }
  th, td { padding-right: .55rem; } }
@media print { :root { color-scheme: light; } body { font-size: 10pt; max-width: none; padding: 0; }
  h2, h3 { break-after: avoid; } tr, figure, .verdict, .tiles, pre { break-inside: avoid; }
  .scroll, .tall { overflow: visible; max-height: none; background: none; }
  table { font-size: 8pt; } th, td { padding-right: .5rem; }
  .bars, .track, .key, .share { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  summary { list-style: none; } details::details-content { content-visibility: visible;
  block-size: auto; } }
"""


def text(value: object) -> Html:
    """Escape a text; one that is too long is cut."""
    shown = str(value)
    shown = shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 3]}..."
    return Html(html.escape(shown))


def say(sentence: str) -> Html:
    """Escape a sentence of ours, however long."""
    return Html(html.escape(sentence))


def code(value: object) -> Html:
    return Html(f"<code>{text(value)}</code>")


def fold(title: str, body: Html) -> Html:
    """Lay something behind its title until a reader asks for it; print shows it."""
    return Html(f"<details><summary>{text(title)}</summary>{body}</details>")


def commands(lines: Sequence[str]) -> Html:
    """Show lines to be typed; a narrow page breaks them before an option, and not inside one."""
    shown = [Html(f"<code>{_whole_options(line)}</code>") for line in lines]
    return Html(f"<pre>{join(shown)}</pre>")


def listing(program: str) -> Html:
    """Show a text whose lines and spaces matter."""
    return Html(f"<pre>{say(program)}</pre>")


def _whole_options(line: str) -> Html:
    words = re.findall(r"""(?:'[^']*'|"[^"]*"|\S)+""", line)
    groups: list[str] = []
    for word in words:
        if groups and re.fullmatch(r"--[\w-]+", groups[-1]) and not word.startswith("-"):
            groups[-1] += f" {word}"
        else:
            groups.append(word)
    return join([Html(f"<span>{say(group)}</span>") for group in groups], " ")


def join(parts: Sequence[Html], between: str = "") -> Html:
    return Html(between.join(parts))


def paragraph(sentence: str, *, dim: bool = False) -> Html:
    return Html(f"<p{' class=dim' * dim}>{say(sentence)}</p>")


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Html]],
    *,
    wide: int | None = None,
    words: Container[int] = (),
) -> Html:
    """Lay cells out as a table that scrolls on a narrow screen.

    Args:
        columns: Their heads.
        rows: Cells.
        wide: Number of a column of running text.
        words: Numbers of columns, beside the first, that hold words and not figures.
    """
    kinds = [
        " class=wide" if n == wide else " class=left" * (n in words) for n in range(len(columns))
    ]
    heads = "".join(
        f"<th scope=col{kind}>{say(name)}</th>" for kind, name in zip(kinds, columns, strict=True)
    )
    lines = [
        "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True))
        for row in rows
    ]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    head = f"<thead><tr>{heads}</tr></thead>" if any(columns) else ""
    return Html(f"<div class=scroll><table>{head}<tbody>{body}</tbody></table></div>")


def legend() -> Html:
    keys = "".join(f'<span class="key {name}">{name}</span>' for name in CLASSES)
    return Html(f"<span>{keys}</span>")


def bars(shares: Mapping[str, float]) -> Html:
    """Draw a bar per class, of shares 0 to 1."""
    drawn = "".join(
        f'<i class={name} style="width:{100 * shares[name]:.1f}%"></i>' for name in CLASSES
    )
    return Html(f"<span class=bars>{drawn}</span>")


def auroc_bar(value: float, *, threshold: float) -> Html:
    """Draw an AUROC from .5 (nothing) to 1 (all), with a mark at the threshold."""
    width, mark = (200 * max(0.0, level - 0.5) for level in (value, threshold))
    over = " class=over" * (value > threshold)
    return Html(
        f'<span class=track><i{over} style="width:{width:.1f}%"></i>'
        f'<u style="left:{mark:.1f}%"></u></span>'
    )


def share_bar(share: float, *, interval: Sequence[float], word: str) -> Html:
    """Draw a share of 0 to 1 of a class, with a line from end to end of its interval."""
    low, high = interval
    return Html(
        f'<span class="track short"><i class={word} style="width:{100 * share:.1f}%"></i>'
        f'<s style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"></s></span>'
    )


def histogram(name: str, heights: Mapping[str, Sequence[int]]) -> Html:
    """Draw both classes side by side in each bin, each as shares of its own class.

    Args:
        name: What is counted.
        heights: (B,) counts of each class.
    """
    shares = {
        word: [count / max(1, sum(heights[word])) for count in heights[word]] for word in CLASSES
    }
    top = max(max(shares[word]) for word in CLASSES)
    step = 100 / len(shares[CLASSES[0]])
    rectangles = [
        _rectangle(word, (bin + 0.08 + 0.42 * number) * step, 0.42 * step, share / top)
        for number, word in enumerate(CLASSES)
        for bin, share in enumerate(shares[word])
        if share
    ]
    return Html(
        f'<svg viewBox="0 0 100 40" preserveAspectRatio=none role=img '
        f'aria-label="{text(name)}, by class">{"".join(rectangles)}</svg>'
    )


def _rectangle(word: str, left: float, width: float, height: float) -> str:
    tall = 40 * height
    return (
        f'<rect class={word} x="{left:.2f}" y="{40 - tall:.2f}" width="{width:.2f}" '
        f'height="{tall:.2f}"/>'
    )


def picture(jpeg: bytes, *, word: str, caption: Html) -> Html:
    """Show an image inside the page itself."""
    data = base64.b64encode(jpeg).decode("ascii")
    return Html(
        f'<figure class={word}><img alt="{word}" src="data:image/jpeg;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def document(title: str, body: Sequence[Html], *, style: str = "") -> str:
    """Return a whole page that needs no other file and no script; ``style`` is added to ours."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )
