"""The audit: what it measures equals what scikit-learn and a pencil say, and its page is safe."""

import html.parser
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Result, run_verb
from PIL import Image
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.tree import DecisionTreeClassifier

from aiornot import storage
from aiornot.config import InputError
from aiornot.data import audit, audit_page, census, demo, images, leak, pages, splits, traits
from aiornot.data.leak import FEATURES, LEAK_AUROC, Score
from aiornot.data.traits import Traits
from aiornot.data.verdict import verdict
from aiornot.tuning import select

NUM_IMAGES = 400
WIDTH = next(feature for feature in FEATURES if feature.name == "width")
QUALITY = next(feature for feature in FEATURES if feature.name == "JPEG quality")
EVIL = "<script>alert('x')</script><img src=http://example.com/x onerror=\"x()\">"


def encode(pixels: np.ndarray | Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def scene(number: int, size: int = 48) -> np.ndarray:
    """A smooth random image (size, size, 3), unlike that of any other number."""
    low = np.random.default_rng(number).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(low).resize((size, size), Image.Resampling.BICUBIC))


def write(folder: Path, rows: list[tuple[str, bytes | None, int]]) -> str:
    folder.mkdir()
    table = [{"id": i, "image": {"bytes": data, "path": None}, "label": y} for i, data, y in rows]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("id", pa.string()), ("image", kind), ("label", pa.int64())])
    pq.write_table(pa.Table.from_pylist(table, schema), folder / "a.parquet", row_group_size=16)
    return str(folder)


def plain_rows(count: int = 40) -> list[tuple[str, bytes | None, int]]:
    return [(f"plain-{n}", encode(scene(n)), n % 2) for n in range(count)]


def made(**changes: Any) -> Traits:
    """The traits of one file; name what matters."""
    values = dict.fromkeys(("quality", "luminance", "chrominance", "subsampling"))
    values |= {"format": "PNG", "mode": "RGB", "width": 64, "height": 64, "num_bytes": 4096}
    values |= {"exif": False, "icc": False, "hash": bytes(16), "grey": bytes(64)}
    return Traits(**values | changes)


def labelled(rows: list[Traits | None], labels: Any, clusters: Any = None) -> leak.Labelled:
    return leak.labelled(rows, labels, np.arange(len(rows)) if clusters is None else clusters)


# The main claim: no leak in the demo's data, and the planted one is found.


@pytest.fixture(scope="session")
def sources(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("sources")
    for bias in ("none", "format"):
        demo.write(root / bias, num_images=NUM_IMAGES, bias=bias, workers=1)
    return {bias: str(root / bias) for bias in ("none", "format")}


@pytest.fixture(scope="session")
def unbiased(sources, tmp_path_factory) -> tuple[Result, Path]:
    out = tmp_path_factory.mktemp("runs") / "unbiased"
    return run_verb("audit", sources["none"], "--out", str(out)), out


@pytest.fixture(scope="session")
def biased(sources, tmp_path_factory) -> tuple[Result, Path]:
    out = tmp_path_factory.mktemp("runs") / "biased"
    return run_verb("audit", sources["format"], "--out", str(out), "--no-images", "--json"), out


def test_demo_data_without_a_planted_leak_is_not_accused(unbiased):
    done, out = unbiased
    assert done.code == 0 and done.out == f"{out}/audit.html\n", done.err
    report = json.loads((out / "audit.json").read_text())
    assert report["verdict"]["finding"] == "none" and not report["verdict"]["mend"]
    assert 0.4 < report["probe"]["metadata"]["auroc"] < 0.62
    assert "No leak found" in done.err and "No leak found" in (out / "audit.html").read_text()
    assert report["counts"]["real"] == report["counts"]["generated"] == NUM_IMAGES // 2
    assert report["duplicates"]["clusters"] == report["unreadable"]["rows"] == 0


def test_a_planted_leak_is_found_named_and_explained(biased):
    done, out = biased
    report = json.loads(done.out)
    assert report == json.loads((out / "audit.json").read_text())
    assert report["probe"]["metadata"]["auroc"] == 1.0
    assert report["verdict"]["finding"] == "leak" and report["verdict"]["by"][0] == "format"
    features = {feature["feature"]: feature for feature in report["probe"]["features"]}
    assert features["format"]["how"] == "PNG: 0% of real, 100% of generated"
    assert features["JPEG quality"]["auroc"] is None  # only real images are JPEG
    for told in (done.err, (out / "audit.html").read_text()):
        assert "A detector could cheat" in told and "Re-encoding everything does not mend" in told


def test_what_the_source_says_of_itself_stands_on_top(unbiased):
    done, out = unbiased
    assert demo.NOTE in done.err.partition("rows: ")[0]
    assert demo.NOTE in (out / "audit.html").read_text().partition("<h2>")[0]


def test_without_images_none_is_in_the_page(biased, unbiased):
    page, other = ((out / "audit.html").read_text() for _, out in (biased, unbiased))
    assert "data:image" not in page and "Left out, as asked" in page
    assert other.count("data:image/jpeg;base64,") == 2 * audit.NUM_SAMPLES
    assert f"holds {2 * audit.NUM_SAMPLES} images of the source" in other
    assert "base64" not in (unbiased[1] / "audit.json").read_text()


def test_an_audit_needs_neither_ray_nor_torch():
    code = (
        "import sys; from aiornot.data import audit_page; print({'ray', 'torch'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# The probe.


def test_a_probe_is_the_pooled_out_of_fold_auroc_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    widths = (rng.normal(500, 60, 300) + 50 * labels).astype(int)
    data = labelled([made(width=int(width)) for width in widths], labels)
    tree = DecisionTreeClassifier(
        max_depth=4, min_samples_leaf=10, class_weight="balanced", random_state=0
    )
    scores = cross_val_predict(
        tree, widths[:, None], labels, cv=PredefinedSplit(data.fold), method="predict_proba"
    )
    found = leak.alone(WIDTH, data)
    assert found.auroc == pytest.approx(roc_auc_score(labels, scores[:, 1]), abs=1e-9)
    assert 0.6 < found.low < found.auroc < found.high < 0.9


def test_a_standard_error_is_that_of_selection():
    for auroc in (0.5, 0.65, 0.99, 1.0):
        for counts in (
            {"num_positive": 10, "num_negative": 30},
            {"num_positive": 5000} | {"num_negative": 9},
        ):
            assert leak.standard_error(auroc, **counts) == select.standard_error(auroc, **counts)


def test_copies_of_an_image_do_not_teach_the_probe_their_own_label():
    """Each scene has five copies and a width of its own, and its label is a coin's."""
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(60), 5)
    labels = rng.integers(0, 2, 60)[clusters]
    widths = 100 + 7 * rng.permutation(60)
    rows = [made(width=int(widths[cluster])) for cluster in clusters]
    together, torn = labelled(rows, labels, clusters), labelled(rows, labels)
    assert leak.metadata(torn).auroc > 0.8
    assert leak.metadata(together).auroc < LEAK_AUROC
    assert leak.metadata(together).high - leak.metadata(together).low > 0.2  # of 60, not of 300


def test_a_size_in_the_middle_is_found():
    """Generated are 512 wide, real are anything: no line tells them apart, a tree does."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    widths = np.where(labels, 512, rng.integers(300, 900, 200)).tolist()
    data = labelled([made(width=width) for width in widths], labels)
    assert leak.alone(WIDTH, data).auroc > 0.9 and leak.metadata(data).auroc > 0.9


def test_a_feature_is_judged_among_the_files_that_have_it():
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 2
    qualities = [
        int(rng.integers(70, 96)) if rng.random() < 0.2 + 0.6 * y else None for y in labels
    ]
    data = labelled([made(quality=quality) for quality in qualities], labels)
    assert abs(leak.alone(QUALITY, data).auroc - 0.5) < 0.1
    only_real = [made(quality=None if label else 90) for label in labels]
    assert leak.alone(QUALITY, labelled(only_real, labels)) == Score()


def test_a_feature_that_all_share_tells_exactly_nothing():
    labels = np.arange(157) % 3 // 2
    assert leak.alone(WIDTH, labelled([made()] * 157, labels)).auroc == 0.5


def test_uneven_folds_do_not_count_as_knowledge():
    """Clusters of one label leave unlike class shares to learn from, which tell of the rest."""
    labels = np.repeat(np.random.default_rng(3).integers(0, 2, 20), 20)
    data = labelled([made()] * 400, labels, np.repeat(np.arange(20), 20))
    assert abs(leak.metadata(data).auroc - 0.5) < 0.1  # without balance it is .3


def test_content_is_probed_apart_from_metadata():
    labels = np.arange(80) % 2
    noise = np.random.default_rng(0).integers(0, 50, (80, 64))
    grey = (noise + 100 * labels[:, None]).astype(np.uint8)
    data = labelled([made(grey=row.tobytes()) for row in grey], labels)
    assert leak.content(data).auroc == 1.0 and leak.metadata(data).auroc < 0.6


def test_too_few_images_are_not_judged():
    rows = [made(width=500 + label) if n < 18 else None for n, label in enumerate([0, 1] * 15)]
    data = labelled(rows, [0, 1] * 15)
    assert leak.metadata(data) == leak.alone(WIDTH, data) == leak.membership([True] * 18, data)
    assert leak.metadata(data) == Score()
    one_image = [0] * 15 + [1] * 15
    copies = np.r_[np.arange(15), np.full(15, 15)]  # all generated are one image: none to learn of
    assert leak.metadata(labelled([made()] * 30, one_image, copies)) == Score()


def test_membership_is_the_auroc_of_the_yes():
    labels = np.random.default_rng(0).integers(0, 2, 100)
    inside = np.random.default_rng(1).random(100) < 0.3 + 0.3 * labels
    found = leak.membership(inside, labelled([made()] * 100, labels))
    assert found.auroc == pytest.approx(roc_auc_score(labels, inside))


@pytest.mark.parametrize(
    ("score", "finding"),
    [
        (Score(0.70, 0.60, 0.80), "leak"),
        (Score(0.70, 0.49, 0.91), "undecided"),  # a few images: it may be chance
        (Score(0.64, 0.62, 0.66), "none"),
        (Score(), "undecided"),
    ],
)
def test_the_verdict_wants_a_high_score_that_is_no_chance(score, finding):
    found = verdict(score, {"format": score, "width": Score(0.6, 0.55, 0.65)})
    assert found["finding"] == finding
    assert found["by"] == (["format"] if finding == "leak" else [])
    assert bool(found["mend"]) == (finding == "leak")


def test_what_no_detector_can_see_is_not_called_cheating():
    high = Score(0.9, 0.8, 1.0)
    assert verdict(high, {"EXIF": high})["text"].startswith("The classes come from different")
    assert verdict(high, {"EXIF": high, "mode": high})["text"].startswith("A detector could cheat")
    combined = verdict(high, {"EXIF": Score(0.6, 0.5, 0.7)})
    assert "by a combination of features" in combined["text"] and combined["mend"]


# Headers.


def test_the_quality_of_a_jpeg_is_read_from_its_tables():
    for quality in range(1, 101):
        header = images.header(encode(scene(0, 16), quality=quality))
        assert traits.quality_of(header.tables[0]) == quality


def test_a_table_that_libjpeg_never_made_gets_the_nearest_quality():
    table = images.header(encode(scene(0, 16), quality=80)).tables[0]
    assert abs(traits.quality_of((table[0] + 3, *table[1:])) - 80) <= 1


EXIF = Image.Exif()
EXIF[0x010F] = "Maker"


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("JPEG", {"subsampling": 0}, {"format": "JPEG", "subsampling": "4:4:4", "exif": False}),
        ("JPEG", {"subsampling": 1}, {"subsampling": "4:2:2"}),
        ("JPEG", {"subsampling": 2, "icc_profile": b"i" * 128}, {"subsampling": "4:2:0"}),
        ("JPEG", {"icc_profile": b"i" * 128}, {"icc": True, "exif": False}),
        ("JPEG", {"exif": EXIF}, {"icc": False, "exif": True, "mode": "RGB"}),
        ("PNG", {"exif": EXIF}, {"format": "PNG", "exif": True, "subsampling": None, "tables": ()}),
        ("WEBP", {"exif": EXIF}, {"format": "WEBP", "exif": True}),
        ("TIFF", {}, {"format": "TIFF", "exif": False, "width": 40, "height": 30}),
    ],
)
def test_a_header_says_how_the_file_was_made(kind, options, expected):
    pixels = scene(0)[:30, :40]
    header = images.header(encode(pixels, kind, **options))
    assert {name: getattr(header, name) for name in expected} == expected
    grey = images.header(encode(Image.fromarray(pixels).convert("L"), "JPEG"))
    assert (grey.mode, grey.subsampling, len(grey.tables)) == ("L", None, 1)


def test_a_header_refuses_what_the_decoder_refuses():
    bomb = encode(Image.new("1", (20_000, 6_000)), "PNG")
    for data in (None, b"", b"%!PS-Adobe EPSF", b"GIF89a", bomb, b"\xff\xd8\xff\xe0"):
        with pytest.raises(ValueError) as refused:
            images.header(data)
        with pytest.raises(ValueError) as decoded:
            images.decode(data)
        assert str(refused.value) == str(decoded.value)


def test_few_files_wait_for_the_threads(monkeypatch):
    pulled = 0

    def files(rows):
        nonlocal pulled
        for _ in range(1000):
            pulled += 1
            yield None

    monkeypatch.setattr(traits, "_files", files)
    looked = traits._looked(None, frozenset())
    assert next(looked) == "empty: there are no bytes"
    assert pulled <= 4 * 8 + 1
    looked.close()


# Counts, against a pencil.


@pytest.fixture(scope="module")
def messy(tmp_path_factory) -> dict[str, Any]:
    """Equal files, a near-duplicate, a conflict, and files that cannot be read."""
    rows = plain_rows()
    rows += [("copy-a", rows[0][1], 0), ("copy-b", rows[0][1], 0)]
    rows += [("small", encode(scene(3).repeat(4, 0).repeat(4, 1), quality=95), 1)]
    rows += [("wrong", rows[4][1], 1)]
    rows += [("torn-off", rows[5][1][:300], 1), ("text", b"hello <b>", 1), ("gone", None, 0)]
    rows += [(EVIL, encode(scene(99), "PNG"), 0)]
    source = write(tmp_path_factory.mktemp("messy") / EVIL.replace("/", "|"), rows)
    found = audit.measure(source)
    return {"rows": rows, "report": found.report, "page": audit_page.page(found), "audit": found}


def test_copies_and_conflicts_are_listed_by_id(messy):
    copies = messy["report"]["duplicates"]
    assert (copies["clusters"], copies["rows"], copies["equal_rows"]) == (3, 7, 5)
    first, *others = copies["largest"]
    assert [row["id"] for row in first["listed"]] == ["plain-0", "copy-a", "copy-b"]
    assert (first["rows"], first["real"], first["generated"], first["equal"]) == (3, 3, 0, True)
    assert [[row["id"] for row in other["listed"]] for other in others if not other["equal"]] == [
        ["plain-3", "small"]
    ]
    (conflict,) = copies["conflicts"]
    assert conflict == [{"id": "plain-4", "class": "real"}, {"id": "wrong", "class": "generated"}]


def test_the_leak_of_the_notebooks_own_split_is_counted(messy):
    ids = [row[0] for row in messy["rows"]]
    plan = splits.plan([row[2] for row in messy["rows"]])
    place = {row: split for split, members in plan.items() for row in members.tolist()}
    groups = [["plain-0", "copy-a", "copy-b"], ["plain-3", "small"], ["plain-4", "wrong"]]
    places = [[place[ids.index(name)] for name in group] for group in groups]
    torn = messy["report"]["duplicates"]["torn"]
    assert torn["clusters"] == sum(len(set(found)) > 1 for found in places)
    outside = [sum(split != "train" for split in found) for found in places if "train" in found]
    assert torn["leaked_rows"] == sum(outside) > 0


def test_the_splits_are_those_of_prepare_with_copies_together(messy):
    ids, labels = [row[0] for row in messy["rows"]], np.array([row[2] for row in messy["rows"]])
    clusters = np.arange(len(ids))
    for first, *others in (
        ["plain-0", "copy-a", "copy-b"],
        ["plain-3", "small"],
        ["plain-4", "wrong"],
    ):
        clusters[[ids.index(other) for other in others]] = ids.index(first)
    kept, torn = (
        {split: census.by_class(labels[members]) for split, members in plan.items()}
        for plan in (splits.plan(labels, clusters=clusters), splits.plan(labels))
    )
    assert messy["report"]["counts"]["splits"] == kept != torn
    assert messy["report"]["counts"]["rows"] == sum(sum(found.values()) for found in kept.values())


def test_what_cannot_be_read_is_counted_with_its_reason(messy):
    bad = messy["report"]["unreadable"]
    assert (bad["rows"], bad["without_bytes"], bad["real"], bad["generated"]) == (3, 1, 1, 2)
    reasons = {row["id"]: row["reason"] for row in bad["listed"]}
    assert list(reasons) == ["torn-off", "text", "gone"]
    assert reasons["torn-off"].startswith("JPEG: ") and "no bytes" in reasons["gone"]
    formats = {row["value"]: row for row in messy["report"]["categories"]["format"]}
    assert sum(row["real"] + row["generated"] for row in formats.values()) == 45
    assert formats["PNG"] == {"value": "PNG", "real": 1, "generated": 0}


def test_native_sizes_are_crossed_with_the_classes():
    labels = np.arange(60) % 2
    sides = [512 if label or n < 20 else 300 for n, label in enumerate(labels.tolist())]
    rows = [made(width=side, height=side if n % 3 else side + 1) for n, side in enumerate(sides)]
    found = census.sizes(labelled(rows, labels))
    square = [made for made in rows if made.width == made.height]
    kinds = {kind["size"]: kind for kind in found["kinds"]}
    both = [made.width == made.height == 512 for made in rows]
    assert kinds["512 x 512"]["auroc"] == pytest.approx(roc_auc_score(labels, both))
    assert (
        kinds["512 x 512"]["generated"] == 20 and kinds["512 x 512"]["shares"]["generated"] == 2 / 3
    )
    assert kinds["square"]["real"] + kinds["square"]["generated"] == len(square)
    assert kinds["a side below 512"]["generated"] == 0 and kinds["256 x 256"]["real"] == 0
    assert found["common"][0] == kinds["512 x 512"]


def test_a_histogram_holds_every_image_and_equal_shares_of_whole_numbers():
    labels = np.arange(500) % 2
    widths = np.random.default_rng(0).integers(100, 160, 500).tolist()
    widths[0], widths[1] = 9000, 1  # far out, but not left out
    number = census.numbers(labelled([made(width=width) for width in widths], labels))["width"]
    assert sum(number["real"]) == sum(number["generated"]) == 250
    assert set(np.diff(number["edges"])) == {3.0} and number["edges"][0] == number["low"] - 0.5
    own = [width for width, label in zip(widths, labels, strict=True) if label]
    assert number["quartiles"]["generated"] == np.quantile(own, (0.25, 0.5, 0.75)).tolist()
    assert number["generated"][0] == sum(width < number["edges"][1] for width in own)


def test_samples_are_drawn_by_the_seed_and_never_unreadable(messy):
    rows, found = messy["rows"], messy["report"]["samples"]
    shown = [sample for samples in found.values() for sample in samples]
    assert all(
        rows[s["row"]][0] == s["id"] and rows[s["row"]][2] == (s["class"] == "generated")
        for s in shown
    )
    assert {sample["class"] for sample in found["both"]} == {"real", "generated"}
    assert {sample["class"] for sample in found["generated"]} <= {"generated"}
    assert not {"torn-off", "text", "gone"} & {sample["id"] for sample in shown}
    assert len(found["both"]) == audit.NUM_SAMPLES
    assert messy["audit"].thumbnails.keys() == {sample["row"] for sample in shown}


def test_progress_reaches_its_end(sources):
    seen: dict[str, tuple[int, int]] = {}
    audit.measure(
        sources["none"],
        with_images=False,
        progress=lambda what, done, total: seen.update({what: (done, total)}),
    )
    assert list(seen) == ["reading", "looking at images", "probing"]
    assert all(done == total for done, total in seen.values())


# The page.


class Tags(html.parser.HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.addresses: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        for name, value in attrs:
            self.handlers += [name] * name.startswith("on")
            if name in ("src", "href", "srcset", "action", "data"):
                self.addresses.append(value or "")


def test_a_hostile_id_source_or_reason_is_only_text(messy):
    tags = Tags()
    tags.feed(messy["page"])
    assert "script" not in tags.names and "b" in tags.names and not tags.handlers
    assert tags.addresses and all(a.startswith("data:image/jpeg;base64,") for a in tags.addresses)
    assert "&lt;script&gt;" in messy["page"] and "hello &lt;b" in messy["page"]
    assert "default-src 'none'" in messy["page"] and "url(" not in messy["page"]


def test_the_page_is_bounded_whatever_the_source(tmp_path):
    """Noise makes the largest thumbnails; every id is long, and escaped six times longer."""
    noise = np.random.default_rng(0).integers(0, 255, (60, 160, 160, 3), dtype=np.uint8)
    files = [encode(pixels, quality=100) for pixels in noise]
    rows = [(f"{n}" + "'" * 5000, files[n % 60], n % 2) for n in range(200)]
    rows += [(f"{n}-{k}" + "'" * 5000, b"'" * n, k % 2) for n in range(30) for k in range(2)]
    found = audit.measure(write(tmp_path / "long", rows))
    assert len(found.thumbnails) == 2 * audit.NUM_SAMPLES
    page = audit_page.page(found)
    assert len(page.encode()) <= audit_page.MAX_BYTES
    assert "'" * 5000 in json.dumps(found.report), "the report keeps the whole id"


# Misuse.


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([("a", b"x", 2)] * 30, "2 was found"),
        ([(f"{n}", b"text %d" % n, n % 2) for n in range(40)], "no image can be read; the first: "),
        (plain_rows(12), "at least 10 of each"),
        ([(f"{n}", None, n % 2) for n in range(40)], "holds no bytes in any row"),
    ],
    ids=["labels", "unreadable", "few", "empty"],
)
def test_a_source_that_cannot_be_audited_is_one_sentence(rows, expected, tmp_path):
    source, out = write(tmp_path / "source", rows), tmp_path / "out"
    done = run_verb("audit", source, "--out", str(out))
    assert done.code == 2 and expected in done.err and "Traceback" not in done.err, done.err
    assert done.err.count("aiornot: ") == 1 and source in done.err
    assert not done.out and not out.exists()


def test_an_out_that_cannot_be_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in ("file", "file/below"):
        done = run_verb("audit", "nosuch", "--out", str(tmp_path / out))
        assert done.code == 2 and "is a file; give a folder" in done.err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_disk_that_fills_is_one_sentence(tmp_path, messy, monkeypatch):
    def full(path: str, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "write_text", full)
    with pytest.raises(InputError, match="No space left on device"):
        audit_page.write(str(tmp_path / "out"), messy["audit"])
    assert not (tmp_path / "out").exists()


def test_an_audit_is_written_to_an_object_store(tmp_path, s3, messy):
    pages.check_out("s3://bucket/audits")
    path = audit_page.write("s3://bucket/audits", messy["audit"])
    assert path == "s3://bucket/audits/audit.html"
    assert storage.read_text(path) == messy["page"]
    assert json.loads(storage.read_text("s3://bucket/audits/audit.json")) == messy["report"]
    s3.refused = "PUT"
    with pytest.raises(InputError, match="s3://bucket/audits: .*give another folder"):
        audit_page.write("s3://bucket/audits", messy["audit"])


@pytest.mark.parametrize("out", ["s3://", "hf://datasets/me/mine", "ftp://host/folder"])
def test_an_address_that_cannot_be_written_is_refused_before_the_work(out):
    done = run_verb("audit", "nosuch", "--out", out)
    assert done.code == 2 and out in done.err and done.err.count("\n") == 1, done.err
