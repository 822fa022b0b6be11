"""The page: ``aiornot app`` as a process of its own, driven over HTTP and in a real browser."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from conftest import CPU, Delivered, run_verb
from PIL import Image

from aiornot.data import hdf5
from aiornot.delivery import bundle, human, manifest

pytest.importorskip("gradio", reason="the extra 'app' is not installed")

NUM = 50

# The command itself, which notes every address that it connects to or asks the name of.
COMMAND = """
import sys
log = open(sys.argv.pop(1), "a", buffering=1)

def note(event, arguments):
    if event == "socket.connect":
        log.write(f"{arguments[1]}\\n")
    elif event == "socket.getaddrinfo":
        log.write(f"{arguments[0]}\\n")

sys.addaudithook(note)
from aiornot import cli
cli.main()
"""


@dataclasses.dataclass(frozen=True)
class Running:
    address: str
    process: subprocess.Popen
    root: Path
    bundle: Path


@pytest.fixture(scope="module")
def running(tmp_path_factory, delivered: Delivered) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("app")
    folder = shutil.copytree(delivered.folder, root / "bundle")
    (root / "tmp").mkdir()
    options = ["--data", delivered.data, "--num", str(NUM), "--out", "kept/me.json", "--port", "0"]
    nowhere = {"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, root / "connections", "app", folder, *options, "--no-open"],
        stdout=subprocess.PIPE,
        stderr=(root / "stderr").open("w"),
        text=True,
        cwd=root,
        env={**os.environ, "TMPDIR": str(root / "tmp"), "OMP_NUM_THREADS": "1", **nowhere},
    ) as process:
        address = process.stdout.readline().strip()
        assert address, (root / "stderr").read_text()
        yield Running(address, process, root, folder)
        process.kill()


@pytest.fixture(scope="module")
def client(running):
    from gradio_client import Client

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        found = Client(running.address, verbose=False, analytics_enabled=False)
        yield found
        found.close()


def picture(path: Path, *, mode: str = "RGB", **options: object) -> Path:
    bands = len(mode)
    pixels = np.random.default_rng(5).integers(0, 256, (40, 70, bands), dtype=np.uint8)
    Image.fromarray(pixels, mode).save(path, **options)
    return path


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[274] = 6  # a quarter to the right
    return exif


def get(address: str, **headers: str) -> str:
    with urlopen(Request(address, headers=headers)) as answer:
        return answer.read().decode()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["plain.png", "turned.jpg", "clear.webp"])
def test_a_dropped_image_gets_the_probability_of_predict_to_the_last_digit(
    running, client, tmp_path, name
):
    """Also where Pillow alone would see other pixels: turned by EXIF, transparent."""
    from gradio_client import handle_file

    file = {
        "plain.png": lambda path: picture(path),
        "turned.jpg": lambda path: picture(path, exif=turned(), quality=90),
        "clear.webp": lambda path: picture(path, mode="RGBA", lossless=True),
    }[name](tmp_path / name)
    said, _ = client.predict(handle_file(str(file)), api_name="/judge")
    predicted = json.loads(
        run_verb("predict", str(running.bundle), str(file), "--device", "cpu").out
    )
    figures = dict(re.findall(r"<dt>(\w+)</dt><dd><code>(.*?)</code>", said))
    assert figures["probability"] == repr(predicted["probability"])
    assert figures["threshold"] == repr(predicted["threshold"])
    assert figures["weights"] == predicted["model"]
    word = re.search(r"<p class=word>(\w+)</p>", said)[1].lower()
    assert word == "unsure" or word == predicted["label"]
    assert client.predict(handle_file(str(file)), api_name="/look").count("<img ") == 1


@pytest.mark.timeout(120)
def test_a_broken_file_is_said_and_nothing_breaks(client, tmp_path):
    from gradio_client import handle_file

    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 no image")
    said, _ = client.predict(handle_file(str(broken)), api_name="/judge")
    assert "No verdict" in said and "cannot be judged" in said
    assert client.predict(handle_file(str(broken)), api_name="/look") == ""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("path", ["/etc/hostname", "http://example.com/a.png"])
def test_neither_files_of_this_machine_nor_urls_are_read(running, path):
    """Asked for by their path, past the upload."""
    payload = {"path": path, "meta": {"_type": "gradio.FileData"}}
    asked = Request(
        f"{running.address}/gradio_api/call/judge",
        data=json.dumps({"data": [payload]}).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urlopen(asked) as answer:
            event = json.loads(answer.read())["event_id"]
        said = get(f"{running.address}/gradio_api/call/judge/{event}")
    except HTTPError as error:
        said = f"event: error {error.code}"
    assert "event: error" in said and "Probability" not in said


def test_only_this_machine_is_let_in_and_nothing_from_elsewhere(running):
    with urlopen(running.address) as answer:
        policy = answer.headers["content-security-policy"]
    assert "connect-src 'self'" in policy and "http:" not in policy
    with pytest.raises(HTTPError) as refused:
        get(running.address, Host="elsewhere.example")
    assert refused.value.code == 400


def answer_all(client, choose: Callable[[int], str], ids: tuple[str, ...]) -> list:
    """Answer every image over HTTP; nothing sent before the end may name one of them."""
    shown = client.predict(api_name="/begin")
    for number in range(NUM):
        assert f"Image {number + 1} of {NUM}" in str(shown)
        assert not any(name in str(shown) for name in ids)
        shown = client.predict(api_name=f"/{choose(number)}")
    return shown


@pytest.mark.timeout(180)
def test_all_images_answered_over_http_are_scored_and_kept(running, client, delivered):
    sample = human.draw(delivered.data, num=NUM)
    page = get(running.address) + get(f"{running.address}/config")
    assert not any(name in page for name in sample.ids)
    words = ["generated" if label else "real" for label in sample.labels]
    words[3] = "real" if words[3] == "generated" else "generated"
    shown = str(answer_all(client, lambda number: words[number], sample.ids))
    assert "49 of 50" in shown and "Model" in shown and "You and the model disagree" in shown
    assert "synthetic" not in shown  # this data says nothing of itself
    kept = json.loads((running.root / "kept/me.json").read_text())
    assert kept["human"]["metrics"]["accuracy"] == 0.98
    assert [row["answer"] for row in kept["images"]] == words
    loaded = bundle.load(running.bundle, device=CPU)
    expected = human.ask_model(sample, loaded, folder=running.bundle)
    assert [row["probability"] for row in kept["images"]] == pytest.approx(expected, abs=1e-6)
    assert all(row["seconds"] >= 0 for row in kept["images"])
    assert not (running.bundle / manifest.EVALUATIONS).exists()  # val: nothing was opened


def browser_or_skip(folder: Path):
    """Start a headless Chromium, or skip: CI has none."""
    webdriver = pytest.importorskip("selenium.webdriver")
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no Chromium with its driver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (
        *("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking"),
        *("no-first-run", "disable-component-update", "disable-sync", "disable-dev-shm-usage"),
        *(f"user-data-dir={folder}", "window-size=390,844"),
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


@pytest.fixture
def browser(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    found = browser_or_skip(tmp_path / "profile")
    yield found
    found.quit()


def until(browser, element: str, words: str) -> str:
    """Wait until the text of an element holds some words, and return the text."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        found = browser.execute_script(
            "return document.getElementById(arguments[0])?.innerText ?? ''", element
        )
        if words in found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"#{element} holds {found!r} and not {words!r}")


def open_tab(browser, name: str) -> None:
    for tab in browser.find_elements("css selector", "button[role=tab]"):
        if tab.text == name and tab.is_displayed():
            tab.click()
            return
    raise AssertionError(f"no tab {name!r}")


def foreign(browser, address: str) -> list[str]:
    """Return every request that went elsewhere."""
    messages = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    sent = [one for one in messages if one["method"] == "Network.requestWillBeSent"]
    urls = [one["params"]["request"]["url"] for one in sent]
    return [url for url in urls if not url.startswith((address, "data:", "blob:", "chrome"))]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_an_image_is_judged_in_a_browser(running, browser, tmp_path):
    """Slow: it starts Chromium, and only where there is one."""
    browser.get(running.address)
    until(browser, "verdict", "will stand here")
    upload = browser.find_element("css selector", "#picture input[type=file]")
    upload.send_keys(str(picture(tmp_path / "a.png")))
    assert "threshold" in until(browser, "verdict", "Probability that it is generated")
    until(browser, "looks", "Where the model looks")
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= browser.execute_script("return window.innerWidth")  # nothing sticks out
    assert not foreign(browser, running.address)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_all_images_are_answered_in_a_browser(running, browser, delivered):
    """Slow: it starts Chromium, and only where there is one."""
    ids = human.draw(delivered.data, num=NUM).ids
    before = set(running.root.glob("kept/*.json"))
    browser.get(running.address)
    until(browser, "verdict", "will stand here")
    open_tab(browser, "Measure yourself")
    until(browser, "intro", "random order")
    browser.find_element("id", "begin").click()
    for number in range(NUM):
        until(browser, "question", f"Image {number + 1} of {NUM}")
        assert not any(name in browser.page_source for name in ids[:5])
        if number == 7:  # loaded anew in the middle
            browser.get(running.address)
            until(browser, "verdict", "will stand here")
            open_tab(browser, "Measure yourself")
            until(browser, "question", f"Image 8 of {NUM}")
        if number % 3:
            browser.find_element("tag name", "body").send_keys("g" if number % 2 else "r")
        else:
            browser.find_element("id", "answer-generated").click()
    assert "Precision" in until(browser, "summary", "Kept in")
    (kept,) = set(running.root.glob("kept/*.json")) - before
    found = json.loads(kept.read_text())
    answers = [row["answer"] == "generated" for row in found["images"]]
    assert answers == [bool(number % 3 == 0 or number % 2) for number in range(NUM)]
    assert not foreign(browser, running.address)


@pytest.mark.timeout(120)
def test_control_c_ends_it_cleanly_and_it_never_spoke_to_anyone_else(running):
    """Stands last in this file: it ends the process that the others use."""
    temporary = running.root / "tmp"
    assert list(temporary.glob("aiornot-app-*/*"))
    before = (running.root / "stderr").read_text()
    assert "Ctrl-C stops it" in before
    while running.process.poll() is None:  # an impatient person
        running.process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    assert running.process.returncode == 0
    assert (running.root / "stderr").read_text() == before
    assert not list(temporary.glob("aiornot-app-*"))
    connections = (running.root / "connections").read_text().splitlines()
    assert connections and all("127.0.0.1" in line for line in connections), connections


def test_a_port_that_is_taken_is_one_sentence(delivered):
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        options = ("--num", "4", "--port", port, "--no-open", "--data", str(delivered.data))
        result = run_verb("human", *options)
    assert result.code == 2 and f"port {port} cannot be used" in result.err


def test_without_gradio_it_says_what_to_install(delivered, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "aiornot.delivery.app", raising=False)
    monkeypatch.delattr("aiornot.delivery.app", raising=False)
    result = run_verb("app", str(delivered.folder), "--no-open")
    assert result.code == 2 and "pip install -e '.[app]'" in result.err


def test_images_of_another_size_are_no_benchmark_for_a_model(delivered, tmp_path):
    other = Path(shutil.copy(delivered.data, tmp_path / "other.h5"))
    hdf5.amend(other, {"size": 64})
    result = run_verb("app", str(delivered.folder), "--data", str(other), "--no-open")
    assert result.code == 2 and "has size 64 and the bundle needs 32" in result.err


def test_a_place_that_cannot_be_written_is_refused_before_the_answers(delivered, tmp_path):
    (tmp_path / "file").touch()
    for out, words in ((tmp_path, "is a folder"), (tmp_path / "file/me.json", "is a file")):
        options = ("--data", str(delivered.data), "--num", "4", "--no-open", "--out", str(out))
        result = run_verb("human", *options)
        assert result.code == 2 and words in result.err, result.err


def test_training_images_are_no_benchmark(delivered):
    result = run_verb("human", "--data", str(delivered.data), "--split", "train", "--no-open")
    assert result.code == 2 and "'val' or 'test'" in result.err
