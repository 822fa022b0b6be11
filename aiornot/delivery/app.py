"""The page in the browser: try a delivered model on an image, and measure yourself against it.

``aiornot app BUNDLE`` and ``aiornot human`` serve it to this machine alone: bound to 127.0.0.1,
nothing is fetched from elsewhere or sent there, and uploads are gone at the end.
"""

import dataclasses
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData

from aiornot.data import hdf5, images
from aiornot.delivery import cards, host, human, predict, results, saliency, style
from aiornot.delivery.bundle import Bundle

MAX_UPLOAD = "100mb"

PATIENCE = 40.0
"""Seconds that the fine map may take; where it would take longer the coarse one stays."""

_KEYS = """<script>
document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest && event.target.closest("input, textarea, select")) return;
  const name = { r: "answer-real", g: "answer-generated" }[event.key.toLowerCase()];
  const button = name && document.getElementById(name);
  if (button && button.offsetParent) button.click();
});
</script>"""


_Updates = dict[Any, Any]
"""Components and what they become."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Show:
    """What the page is about: a model, a benchmark, or both."""

    bundle: Bundle | None = None
    folder: Path | None = None
    """Of the bundle."""
    sample: human.Sample | None = None
    """The first round of the benchmark."""
    out: Path | None = None
    """Where the benchmark's record is kept; by default a file named by the time."""
    only_benchmark: bool = False


@contextmanager
def served(show: Show, *, port: int = 0) -> Iterator[str]:
    """Serve the page meanwhile, and yield its address.

    Args:
        show: What is on it.
        port: Of this machine; 0 takes a free one.

    Raises:
        InputError: The port is taken.
    """
    port = host.free_port(port)
    with tempfile.TemporaryDirectory(prefix="aiornot-app-") as uploads, host.environment(uploads):
        blocks = page(show)
        blocks.launch(
            server_name=host.HOST,
            server_port=port,
            share=False,
            inbrowser=False,
            inline=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
            max_file_size=MAX_UPLOAD,
            app_kwargs={"middleware": host.middleware(), "docs_url": None, "redoc_url": None},
            theme=_theme(),
            css=style.STYLE,
            head=_KEYS,
        )
        try:
            yield f"http://{host.HOST}:{port}"
        finally:
            blocks.close(verbose=False)


def _theme() -> gr.themes.Base:
    """Return Gradio's plain theme with fonts that are on every machine; its own are fetched."""
    return gr.themes.Base(
        primary_hue="slate", neutral_hue="slate", font=["sans-serif"], font_mono=["monospace"]
    )


def page(show: Show) -> gr.Blocks:
    """Build the page; the environment must be set, see ``served``."""
    blocks: gr.Blocks
    with gr.Blocks(title="aiornot", analytics_enabled=False, delete_cache=(600, 600)) as blocks:
        gr.HTML(_heading(show))
        # Here and not in its tab: what is in a closed tab does not exist when the page is loaded.
        kept = gr.BrowserState(storage_key="aiornot-sitting")
        if show.only_benchmark or show.bundle is None:
            _measure(blocks, show, kept)
        else:
            with gr.Tab("Try an image"):
                _try(show.bundle)
            with gr.Tab("Measure yourself"):
                _measure(blocks, show, kept)
    return blocks


def _heading(show: Show) -> str:
    if show.bundle is not None:
        note = show.bundle.description["data"].get("source_note", "")
        return cards.heading(cards.about(show.bundle), note=f"trained on {note}" if note else "")
    return cards.heading("How well can you tell?")


def _try(bundle: Bundle) -> None:
    """Lay out the first tab: an image in, a verdict and a map out."""
    nothing = cards.empty("The verdict will stand here.")
    with gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            picture = gr.Image(
                label="Image",
                show_label=False,
                sources=["upload", "clipboard"],
                buttons=[],
                height="22rem",
                placeholder="Drop an image, or click to choose one",
                elem_id="picture",
            )
            _hand_over_files(picture)
        with gr.Column(min_width=300):
            said = gr.HTML(nothing, elem_id="verdict")
            looks = gr.HTML(elem_id="looks")

    def judge(path: str | None) -> tuple[str, str]:
        return (_judge(bundle, Path(path)) if path else nothing), ""

    def look(path: str | None) -> Iterator[str]:
        yield from _look(bundle, Path(path)) if path else [""]

    judged = picture.change(
        judge, picture, [said, looks], api_name="judge", show_progress="minimal"
    )
    looked = judged.then(look, picture, looks, api_name="look", show_progress="minimal")
    picture.change(None, cancels=[looked], api_visibility="private")


def _hand_over_files(picture: gr.Image) -> None:
    """Make an image component hand over the path of the file as it was uploaded.

    Its own way opens the file with Pillow: other formats, no bounds, other pixels. A path that is
    a URL it would fetch. A subclass will not do: Gradio writes a ``.pyi`` file beside its source.
    """
    keep = picture.async_move_resource_to_block_cache

    def path_of(payload: ImageData | None) -> str | None:
        return payload.path if payload is not None else None

    async def move(path: str | Path | None) -> str | None:
        if path is not None and "://" in str(path):
            raise gr.Error(
                "URLs are not fetched; download the image and drop its file", print_exception=False
            )
        return await keep(path)

    picture.preprocess = path_of  # type: ignore[method-assign]
    picture.async_move_resource_to_block_cache = move  # type: ignore[method-assign, assignment]


def _judge(bundle: Bundle, path: Path) -> str:
    """Return the verdict on a file, by the same way as ``aiornot predict``."""
    (prediction,) = predict.predict(bundle, [path])
    seen = ""
    if prediction.error is None:
        seen = cards.seen(bundle, *images.decode(path.read_bytes()).shape[:2])
    return cards.verdict(prediction, bundle, seen=seen)


def _look(bundle: Bundle, path: Path) -> Iterator[str]:
    """Yield a coarse map and, where that was quick, a fine one."""
    try:
        pixels = images.decode(path.read_bytes())
    except ValueError:  # the verdict says so already
        yield ""
        return
    pixels = images.fit(pixels, bundle.size, geometry=bundle.geometry, resample=bundle.resample)
    for grid in (saliency.COARSE, saliency.FINE):
        started = time.monotonic()
        found = saliency.occlude(bundle, pixels, grid=grid)
        yield cards.looks(saliency.paint(pixels, found.change), found, bundle.calibration)
        if (time.monotonic() - started) * (saliency.FINE / saliency.COARSE) ** 2 > PATIENCE:
            return


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Parts:
    """The components of the benchmark."""

    sitting: gr.State
    """A ``human.Sitting``, on this side alone."""
    kept: gr.BrowserState
    """What the browser needs to go on after the page was loaded anew."""
    intro: gr.Column
    begin: gr.Button
    exam: gr.Column
    question: gr.HTML
    real: gr.Button
    generated: gr.Button
    result: gr.Column
    summary: gr.HTML
    gallery: gr.HTML
    again: gr.Button

    @property
    def outputs(self) -> list[Any]:
        columns = [self.intro, self.exam, self.result]
        return [self.sitting, self.kept, *columns, self.question, self.summary, self.gallery]


def _measure(blocks: gr.Blocks, show: Show, kept: gr.BrowserState) -> None:
    """Lay out the benchmark: what it is, the images one after the other, the result."""
    sample = show.sample
    if sample is None:
        gr.HTML(
            cards.empty(
                "There are no images to ask you about.",
                "Start the app with --data and a prepared file of this model's size.",
            )
        )
        return
    parts = _lay_out(sample, kept, with_model=show.bundle is not None)

    def start(last: human.Sitting | None) -> _Updates:
        """Begin a round; after a finished one its images are others."""
        chosen = sample if last is None else _following(last.sample)
        return _shown(parts, human.Sitting(sample=chosen, shown=time.monotonic()))

    def resume(stored: Any) -> _Updates:
        found = _restored(sample, stored)
        return _shown(parts, found) if found is not None else {parts.sitting: None}

    def reply(last: human.Sitting | None, generated: bool) -> Iterator[_Updates]:
        if last is None or last.is_done:
            raise gr.Error("This round is over; load the page again", print_exception=False)
        now = last.answered(generated, now=time.monotonic())
        yield from _ended(parts, show, now) if now.is_done else [_shown(parts, now)]

    def real(last: human.Sitting | None) -> Iterator[_Updates]:
        yield from reply(last, False)

    def generated(last: human.Sitting | None) -> Iterator[_Updates]:
        yield from reply(last, True)

    asked: dict[str, Any] = {"inputs": parts.sitting, "outputs": parts.outputs}
    quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_id": "answers"}
    parts.begin.click(start, **asked, api_name="begin")
    parts.again.click(start, **asked, api_visibility="private")
    parts.real.click(real, **asked, api_name="real", **quiet)
    parts.generated.click(generated, **asked, api_name="generated", **quiet)
    blocks.load(resume, parts.kept, parts.outputs, api_visibility="private", show_progress="hidden")


def _lay_out(sample: human.Sample, kept: gr.BrowserState, *, with_model: bool) -> _Parts:
    sitting = gr.State()
    with gr.Column(elem_id="intro") as intro:
        gr.HTML(cards.introduction(sample, with_model=with_model))
        begin = gr.Button("Begin", elem_id="begin")
    with gr.Column(visible=False) as exam:
        question = gr.HTML(elem_id="question")
        with gr.Row(elem_id="answers"):
            real = gr.Button("Real", elem_id="answer-real")
            generated = gr.Button("Generated", elem_id="answer-generated")
    with gr.Column(visible=False) as result:
        summary, gallery = gr.HTML(elem_id="summary"), gr.HTML()
        again = gr.Button("Another round", elem_id="again")
    return _Parts(
        sitting=sitting,
        kept=kept,
        intro=intro,
        begin=begin,
        exam=exam,
        question=question,
        real=real,
        generated=generated,
        result=result,
        summary=summary,
        gallery=gallery,
        again=again,
    )


def _shown(parts: _Parts, now: human.Sitting) -> _Updates:
    """Show the image at hand; no label is in any of it."""
    number = len(now.answers)
    picture = now.sample.pixels(number)
    return {
        parts.sitting: now,
        parts.kept: _kept(now),
        parts.intro: gr.Column(visible=False),
        parts.exam: gr.Column(visible=True),
        parts.result: gr.Column(visible=False),
        parts.question: cards.question(picture, number=number, total=len(now.sample)),
    }


def _ended(parts: _Parts, show: Show, now: human.Sitting) -> Iterator[_Updates]:
    yield {parts.question: cards.empty("That was the last one. Counting.")}
    found, said = _finish(show, now)
    pictures = [now.sample.pixels(number) for number in range(len(now.sample))]
    yield {
        parts.sitting: now,
        parts.kept: None,
        parts.exam: gr.Column(visible=False),
        parts.result: gr.Column(visible=True),
        parts.summary: results.summary(found, saved=said),
        parts.gallery: results.galleries(pictures, found["images"]),
    }


def _following(sample: human.Sample) -> human.Sample:
    return human.draw(sample.data, split=sample.split, num=len(sample), seed=sample.seed + 1)


def _kept(now: human.Sitting) -> dict[str, Any]:
    """Return what the browser keeps of a sitting, in case the page is loaded anew: no labels."""
    return {
        "images": _name(now.sample),
        "seed": now.sample.seed,
        "answers": list(now.answers),
        "seconds": list(now.seconds),
    }


def _name(sample: human.Sample) -> list[Any]:
    fingerprint = hdf5.attributes(sample.data).get("fingerprint")
    return [fingerprint, sample.split, len(sample)]


def _restored(first: human.Sample, stored: Any) -> human.Sitting | None:
    """Return the sitting that the browser kept, if it is one of these images."""
    try:
        if stored["images"] != _name(first) or not stored["answers"]:
            return None
        sample = first
        while sample.seed < int(stored["seed"]):
            sample = _following(sample)
        return human.Sitting(
            sample=sample,
            answers=tuple(map(bool, stored["answers"])),
            seconds=tuple(map(float, stored["seconds"])),
            shown=time.monotonic(),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _finish(show: Show, now: human.Sitting) -> tuple[dict[str, Any], str]:
    """Ask the model the same, keep the record, and say where."""
    probabilities = None
    if show.bundle is not None and show.folder is not None:
        probabilities = human.ask_model(now.sample, show.bundle, folder=show.folder)
    found = human.record(now, bundle=show.bundle, probabilities=probabilities)
    out = show.out or Path("runs/human") / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    try:
        return found, f"Kept in {human.save(found, out)}."
    except OSError as error:
        return found, f"It could not be kept in {out}: {error.strerror or error}."
