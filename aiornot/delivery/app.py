"""The page in the browser: try a delivered model on an image, and measure yourself against it.

``aiornot app BUNDLE`` and ``aiornot human`` serve it to this machine alone: bound to 127.0.0.1,
nothing is fetched from elsewhere or sent there, and uploads are gone at the end.
"""

import dataclasses
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aiornot.config import InputError
from aiornot.data import hdf5, images
from aiornot.delivery import cards, human, predict, saliency
from aiornot.delivery.bundle import Bundle

HOST = "127.0.0.1"

MAX_UPLOAD = "100mb"

PATIENCE = 40.0
"""Seconds that the fine map may take; where it would take longer the coarse one stays."""

_ENVIRONMENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
}

# Whatever a library may ask the browser to load from elsewhere, it does not get.
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'self'"
)

_KEYS = """<script>
document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest && event.target.closest("input, textarea, select")) return;
  const name = { r: "answer-real", g: "answer-generated" }[event.key.toLowerCase()];
  const button = name && document.getElementById(name);
  if (button && button.offsetParent) button.click();
});
</script>"""


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
    port = _port(port)
    with tempfile.TemporaryDirectory(prefix="aiornot-") as uploads, _environment(uploads):
        blocks = page(show)
        blocks.launch(
            server_name=HOST,
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
            app_kwargs={"middleware": _middleware(), "docs_url": None, "redoc_url": None},
            theme=_theme(),
            css=cards.STYLE,
            head=_KEYS,
        )
        try:
            yield f"http://{HOST}:{port}"
        finally:
            blocks.close(verbose=False)


def wait() -> None:
    """Return when the process is asked to end, by Ctrl-C or SIGTERM."""
    stop = threading.Event()
    names = (signal.SIGINT, signal.SIGTERM)
    before = {name: signal.signal(name, lambda *_: stop.set()) for name in names}
    try:
        stop.wait()
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _port(wanted: int) -> int:
    """Return a free port; Gradio takes no 0, and would look for another one where it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted))
        except (OSError, OverflowError) as error:
            raise InputError(
                f"port {wanted} cannot be used ({error}); give another --port, or 0 for a free one"
            ) from None
        return int(probe.getsockname()[1])


@contextmanager
def _environment(uploads: str) -> Iterator[None]:
    """Tell Gradio by the environment what it asks there alone, and put everything back."""
    # Gradio greets its own server over HTTP, which a proxy of the environment would swallow.
    local = ",".join(filter(None, [os.environ.get("NO_PROXY"), HOST]))
    wanted = _ENVIRONMENT | {"GRADIO_TEMP_DIR": uploads, "NO_PROXY": local, "no_proxy": local}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _middleware() -> list[Middleware]:
    # Another page that lets its name point at 127.0.0.1 comes with its own name as the host.
    return [
        Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"]),
        Middleware(_Policy),
    ]


class _Policy:
    """Sends the policy with every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", _POLICY.encode())
                message["headers"] = [*message.get("headers", []), policy]
            await send(message)

        await self._app(scope, receive, with_policy)


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
        if show.only_benchmark or show.bundle is None:
            _measure(blocks, show)
        else:
            with gr.Tab("Try an image"):
                _try(show.bundle)
            with gr.Tab("Measure yourself"):
                _measure(blocks, show)
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


def _measure(blocks: gr.Blocks, show: Show) -> None:
    """Lay out the benchmark: what it is, the images one after the other, the result."""
    if show.sample is None:
        gr.HTML(
            cards.empty(
                "There are no images to ask you about.",
                "Start the app with --data and a prepared file of this model's size.",
            )
        )
        return
    sample = show.sample
    sitting = gr.State()
    kept = gr.BrowserState(storage_key="aiornot-sitting")
    with gr.Column(elem_id="intro") as intro:
        gr.HTML(cards.introduction(sample, with_model=show.bundle is not None))
        begin = gr.Button("Begin", variant="primary", elem_id="begin")
    with gr.Column(visible=False) as exam:
        question = gr.HTML(elem_id="question")
        with gr.Row(elem_id="answers"):
            real = gr.Button("Real", elem_id="answer-real")
            generated = gr.Button("Generated", elem_id="answer-generated")
    with gr.Column(visible=False) as result:
        summary = gr.HTML(elem_id="summary")
        gallery = gr.HTML()
        again = gr.Button("Another round", elem_id="again")
    outputs = [sitting, kept, intro, exam, result, question, summary, gallery]

    def show_sitting(now: human.Sitting) -> dict[Any, Any]:
        return {
            sitting: now,
            kept: _kept(now),
            intro: gr.Column(visible=False),
            exam: gr.Column(visible=True),
            result: gr.Column(visible=False),
            question: _question(now),
        }

    def start(last: human.Sitting | None) -> dict[Any, Any]:
        """Begin a round; after a finished one its images are others."""
        chosen = sample if last is None else _following(last.sample)
        return show_sitting(human.Sitting(sample=chosen, shown=time.monotonic()))

    def resume(stored: Any) -> dict[Any, Any]:
        """Go on after the page was loaded anew."""
        found = _restored(sample, stored)
        return show_sitting(found) if found is not None else {sitting: None}

    def reply(generated: bool) -> Callable[[human.Sitting | None], Iterator[dict[Any, Any]]]:
        def answer(last: human.Sitting | None) -> Iterator[dict[Any, Any]]:
            if last is None or last.is_done:
                raise gr.Error("This round is over; load the page again", print_exception=False)
            now = last.answered(generated, now=time.monotonic())
            if not now.is_done:
                yield show_sitting(now)
                return
            yield {question: cards.empty("That was the last one. The model is being asked now.")}
            found, said = _finish(show, now)
            yield {
                sitting: now,
                kept: None,
                exam: gr.Column(visible=False),
                result: gr.Column(visible=True),
                summary: cards.summary(found, saved=said),
                gallery: _gallery(now, found),
            }

        return answer

    begin.click(start, sitting, outputs, api_name="begin")
    again.click(start, sitting, outputs, api_visibility="private")
    quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_id": "answers"}
    real.click(reply(False), sitting, outputs, api_name="real", **quiet)
    generated.click(reply(True), sitting, outputs, api_name="generated", **quiet)
    blocks.load(resume, kept, outputs, api_visibility="private", show_progress="hidden")


def _question(now: human.Sitting) -> str:
    number = len(now.answers)
    return cards.question(now.sample.pixels(number), number=number, total=len(now.sample))


def _gallery(now: human.Sitting, found: dict[str, Any]) -> str:
    pictures = [now.sample.pixels(number) for number in range(len(now.sample))]
    return cards.galleries(pictures, found["images"])


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
