"""A steered conversation as HTML: what was said, and the answers side by side. Model text is always escaped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from eval.talk import Turn, Writing
from eval.talk_table import printable

CSS = """
.talk { display: flex; flex-direction: column; gap: 1.1em; color: var(--body-text-color); }
.talk .said { align-self: flex-end; max-width: 75%; padding: .55em .9em; border-radius: .9em;
  background: var(--color-accent-soft); white-space: pre-wrap; overflow-wrap: anywhere; }
.talk .answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(10.5em, 100%), 1fr)); gap: .6em; }
.talk .answer { border: 1px solid var(--border-color-primary); border-radius: .6em; padding: .55em .75em;
  min-width: 0; }
.talk .answer.kept { border-color: var(--color-accent); border-width: 2px; }
.talk .answer b { display: block; font-size: .8em; opacity: .75; margin-bottom: .3em; font-weight: 600; }
.talk .answer div { white-space: pre-wrap; overflow-wrap: anywhere; min-height: 1.4em; }
.talk .none { opacity: .7; }
.talk-status { font-size: .85em; white-space: pre-wrap; overflow-wrap: anywhere; color: var(--body-text-color); }
.talk-status.wrong { color: var(--error-text-color, #b91c1c); font-weight: 600; }
"""
_ENDED = {"end": "", "length": ", cut at the most tokens", "stopped": ", stopped"}


def conversation(turns: Sequence[Turn], said: str | None = None, writing: Writing | None = None) -> str:
    """The turns, and the one that is being written."""
    parts = [part for turn in turns for part in _turn(turn)]
    if said is not None:
        parts.append(_said(said))
        strengths = writing.strengths if writing is not None else ()
        texts = [
            (f"strength {one:g}", writing.text(i), False) for i, one in enumerate(strengths) if writing is not None
        ]
        parts.append(_answers(texts or [("...", "", False)]))
    if not parts:
        parts = ["<div class='none'>Nothing has been said yet.</div>"]
    busy = " aria-busy='true'" if said is not None else ""
    return f"<div class='talk' role='log' aria-label='conversation'{busy}>{''.join(parts)}</div>"


def status(lines: Sequence[str], *, wrong: bool = False) -> str:
    """Lines of settings or receipts, or an error."""
    text = escape(printable("\n".join(lines)))
    return f"<div class='talk-status{' wrong' if wrong else ''}' role='{'alert' if wrong else 'status'}'>{text}</div>"


def _turn(turn: Turn) -> Iterator[str]:
    yield _said(turn.user)
    cells = []
    for one in turn.answers:
        kept = len(turn.answers) > 1 and one.strength == turn.kept
        cells.append((f"strength {one.strength:g}{' (goes on)' * kept}{_ENDED[one.ended]}", one.text, kept))
    yield _answers(cells)


def _said(text: str) -> str:
    return f"<div class='said'>{escape(printable(text))}</div>"


def _answers(shown: Sequence[tuple[str, str, bool]]) -> str:
    """Cells of (label, text, whether the conversation goes on with it)."""
    cells = (
        f"<div class='answer{' kept' if kept else ''}'><b>{escape(label)}</b>"
        f"<div>{escape(printable(text).strip())}</div></div>"
        for label, text, kept in shown
    )
    return f"<div class='answers'>{''.join(cells)}</div>"
