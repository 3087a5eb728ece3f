"""The fields of the page: how they are laid out, what they show, and how the settings are read from them."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval import talk_controls as controls
from eval import talk_page_html as html
from eval.talk_controls import Desk
from eval.talk_settings import parse_layer
from persona_vectors.interventions import POSITIONS
from persona_vectors.vector_files import SUFFIXES

Control = tuple[Any, Callable[..., list[str]], list[Any]]


@dataclass(frozen=True, eq=False)
class Fields:
    """Gradio components by what they are for.

    Attributes:
        shown: conversation, status, text, the answer to go on with, and the downloads, as `talk_page.shown` fills them.
        settings: those that `values` fills and `apply` reads, in the same order.
    """

    shown: list[Any]
    settings: list[Any]
    text: Any
    send: Any
    stop: Any
    undo: Any
    reset: Any
    keep: Any
    example: Any
    vector: Any
    added: tuple[Any, Any, Any, Any]
    removed: tuple[Any, Any]

    def values(self, desk: Desk) -> list[Any]:
        """The fields with what holds now."""
        import gradio as gr

        settings = desk.settings
        here = [str(settings.file.path), *vector_files_near(settings.file.path)]
        added = [f"{number}. {part.line}" for number, part in enumerate(settings.added, start=1)]
        return [
            gr.Dropdown(choices=list(dict.fromkeys(here)), value=str(settings.file.path)),
            gr.Dropdown(choices=[one for one in settings.file.layers if one > 0], value=settings.layer),
            " ".join(f"{one:g}" for one in settings.strengths),
            settings.strength,
            settings.seed,
            settings.temperature,
            settings.max_tokens,
            settings.positions,
            settings.system_prompt,
            settings.control,
            gr.Dropdown(choices=desk.examples, value=None, info=desk.examples_from),
            gr.Dropdown(choices=added, value=None, visible=bool(added)),
            gr.Button(visible=bool(added)),
        ]

    def apply(self, desk: Desk, values: Sequence[Any]) -> list[str]:
        """Puts what the fields say into the settings; no lines, since the fields say it.

        Raises:
            ValueError: one line; the settings are as they were.
        """
        _, layer, strengths, strength, seed, temperature, max_tokens, positions, system, control, *_ = values
        try:
            compared = tuple(float(one) for one in strengths.replace(",", " ").split())
        except ValueError:
            raise ValueError(f"strengths expects numbers such as -2 -1 0 1 2; got {strengths!r}") from None
        missing = [name for name, value in (("seed", seed), ("strength", strength)) if value is None]
        if missing:
            raise ValueError(f"{missing[0]} is empty; expected a number")
        desk.session.change(
            layer=parse_layer(str(layer)),
            compared=compared if len(compared) > 1 or compared != (strength,) else (),
            strength=float(strength),
            seed=int(seed),
            temperature=float(temperature),
            max_tokens=int(max_tokens),
            positions=positions,
            system_prompt=(system or "").strip(),
            control=bool(control),
        )
        return []

    def controls(self) -> Iterator[Control]:
        """(event, what it does with the desk and the inputs' values, inputs) of everything but asking."""
        yield self.undo.click, controls.undo, []
        yield self.reset.click, controls.reset, []
        yield self.keep.input, lambda desk, strength: controls.keep(desk, float(strength)), [self.keep]
        yield self.vector.input, lambda desk, path: controls.use_file(desk, path), [self.vector]
        button, *inputs = self.added
        yield button.click, _add, list(inputs)
        button, chosen = self.removed
        yield button.click, _remove, [chosen]


def _add(desk: Desk, path: str, layer: Any, coef: Any) -> list[str]:
    if not path or layer is None or coef is None:
        raise ValueError("to add a vector, give its file, a layer and a coefficient")
    return controls.add(desk, path, int(layer), float(coef))


def _remove(desk: Desk, chosen: str | None) -> list[str]:
    if not chosen:
        raise ValueError("choose the added vector that is to go")
    return controls.remove(desk, int(chosen.partition(".")[0]))


def vector_files_near(path: Path) -> list[str]:
    """The vector files in a file's folder."""
    return sorted(str(file) for file in path.parent.iterdir() if file.suffix in SUFFIXES)


def layout(desk: Desk) -> Fields:
    """The page's components: the conversation, and the settings beside it."""
    import gradio as gr

    gr.Markdown(f"## Steering {desk.settings.shape.label}")
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=320):
            conversation = gr.HTML(html.conversation([]), elem_id="conversation")
            keep = gr.Radio([], label="The conversation goes on with strength", visible=False, elem_id="keep")
            text = gr.Textbox(label="You", placeholder="Say something, or /help", autofocus=True, elem_id="text")
            with gr.Row():
                send = gr.Button("Send", variant="primary", elem_id="send", min_width=70)
                stop = gr.Button("Stop", elem_id="stop", min_width=70)
                undo = gr.Button("Undo", elem_id="undo", min_width=70)
                reset = gr.Button("New", elem_id="reset", min_width=70)
            status = gr.HTML(html.status(desk.settings.lines()), elem_id="status")
            example = gr.Dropdown([], label="Something to begin with", elem_id="example")
            with gr.Row():
                whole = gr.DownloadButton("Download all (JSON)", interactive=False, elem_id="json")
                read = gr.DownloadButton("Download to read (Markdown)", interactive=False, elem_id="markdown")
        with gr.Column(scale=1, min_width=280):
            settings, added, removed = _settings_column()
    return Fields(
        shown=[conversation, status, text, keep, whole, read],
        settings=[*settings, example, removed[1], removed[0]],
        text=text,
        send=send,
        stop=stop,
        undo=undo,
        reset=reset,
        keep=keep,
        example=example,
        vector=settings[0],
        added=added,
        removed=removed,
    )


def _settings_column() -> tuple[list[Any], tuple[Any, Any, Any, Any], tuple[Any, Any]]:
    """(the settings' fields in the order of `Fields.values`, those that add a vector, those that take one away)."""
    import gradio as gr

    settings = [
        gr.Dropdown([], label="Vector file", allow_custom_value=True, elem_id="vector"),
        gr.Dropdown([], label="Layer", elem_id="layer"),
        gr.Textbox(label="Strengths, side by side", elem_id="strengths"),
        gr.Number(label="Strength to go on with", elem_id="strength"),
        gr.Number(label="Seed", precision=0, minimum=0, elem_id="seed"),
        gr.Slider(0, 2, step=0.05, label="Temperature", elem_id="temperature"),
        gr.Number(label="Most tokens of an answer", precision=0, minimum=1, elem_id="max_tokens"),
        gr.Radio(list(POSITIONS), label="Steered tokens", elem_id="positions"),
        gr.Textbox(label="System prompt", lines=2, elem_id="system"),
        gr.Checkbox(label="A random direction of the same norm in its place", elem_id="control"),
    ]
    with gr.Accordion("Add another vector", open=False):
        path = gr.Textbox(label="File", elem_id="add_file")
        with gr.Row():
            layer = gr.Number(label="Layer", precision=0, elem_id="add_layer")
            coef = gr.Number(label="Coefficient", value=1.0, elem_id="add_coef")
        add = gr.Button("Add", elem_id="add")
        chosen = gr.Dropdown([], label="Added to every answer", visible=False, elem_id="added")
        remove = gr.Button("Take away", visible=False, elem_id="remove")
    return settings, (add, path, layer, coef), (remove, chosen)
