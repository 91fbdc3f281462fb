"""The page that a run leaves."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from job.errors import InputError
from job.run.report import duration, write_report

NAMES = ["T-shirt/top", "<script>alert(1)</script>", *"CDEFGHIJ"]
ENDLESS = {"area", "base", "br", "col", "img", "input", "link", "meta", "path", "use", "rect", "hr"}


class Page(HTMLParser):
    """What the tests want to know of a page; raises if its elements don't nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, {name: value or "" for name, value in attributes}))
        if tag not in ENDLESS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, {name: value or "" for name, value in attributes}))

    def handle_endtag(self, tag):
        if tag not in ENDLESS:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def attributes(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def predictions(count=200, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 10, count)
    logits = generator.normal(size=(count, 10)) + 2 * np.eye(10)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return {
        "places": np.arange(1000, 1000 + count),
        "images": generator.integers(0, 256, (count, 28, 28), dtype=np.uint8),
        "labels": labels,
        "probabilities": probabilities.astype(np.float32),
        "class_names": NAMES,
        "split_name": "test",
    }


@pytest.fixture
def run(tmp_path):
    """A run folder as training leaves it, of two epochs."""
    (tmp_path / "config.yaml").write_text("dataset: fashion-mnist\nrecipe: fast\nweights: none\nstages: [[4, 32]]\n")
    environment = {"command": "python -m job.train --seed 1 && x", "libraries": {"keras": "3.15.1"}}
    (tmp_path / "environment.json").write_text(json.dumps(environment))
    write_metrics(tmp_path, [{"epoch": 1, "val_loss": 0.9}, {"epoch": 2, "val_loss": 0.4}])
    result = {"val_accuracy": 0.876, "test_accuracy": 0.8, "epochs": 2, "ranks": 4, "seconds": 100, "status": "done"}
    result |= {"test_accuracy_with_flips": 0.81, "best_epoch": 1}
    (tmp_path / "result.json").write_text(json.dumps(result | {"timings": {"steps": 60.0, "import": 30.0}}))
    return tmp_path


def write_metrics(folder, epochs):
    usual = {"loss": 0.5, "accuracy": 0.8, "val_loss": 0.6, "val_accuracy": 0.7, "learning_rate": 1e-3, "seconds": 9.0}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(usual | epoch) + "\n" for epoch in epochs))


def written(folder, **changed) -> Page:
    return Page(write_report(folder, **predictions() | changed).read_text())


def test_page_tells_the_whole_run(run):
    page = written(run)
    for expected in (
        "± ",
        "standard error, 200 images; 81.00 % averaged with mirror images",
        "Epochs 2 best: 1",
        "Validation 87.60",
        "Ranks 4",
        "1 min 40 s",
        "Dataset fashion-mnist",
    ):
        assert expected in page.text
    assert "Start: importing libraries, meeting the other ranks 30.0 s 30.0 %" in page.text
    assert "Everything else 10.0 s 10.0 %" in page.text
    assert "stages [[4, 32]]" in page.text
    assert "libraries.keras 3.15.1" in page.text
    labels = [figure["aria-label"] for figure in page.attributes("figure")]
    assert labels[0].startswith("Loss by epoch: training from 0.5 in epoch 1 to 0.5 in epoch 2; validation from 0.9 ")
    assert len(labels) == 3


def test_page_asks_for_nothing_from_outside(run):
    text = write_report(run, **predictions()).read_text()
    assert not re.search(
        r"https?:|//[a-z]|@import|<script|<link|<iframe", re.sub(r"data:image/png;base64,[^\"]+", "", text)
    )
    assert "default-src 'none'" in text
    assert all(image["src"].startswith("data:image/png;base64,") for image in Page(text).attributes("img"))


def test_names_and_values_are_escaped(run):
    (run / "config.yaml").write_text("recipe: '<img src=x onerror=alert(1)>'\n'<b>': '</table>'\n")
    page = written(run)
    assert "script" not in {tag for tag, _ in page.tags}
    assert not any("onerror" in image for image in page.attributes("img"))
    assert "<img src=x onerror=alert(1)>" in page.text


def test_pictures_and_tables_speak_to_those_who_do_not_see(run):
    page = written(run)
    pictures = page.attributes("img")
    assert len(pictures) == 24
    assert all(re.fullmatch(r"Test image 1\d\d\d: .+, taken for .+", picture["alt"]) for picture in pictures)
    assert all(header["scope"] in ("row", "col") for header in page.attributes("th"))
    assert [html["lang"] for html in page.attributes("html")] == ["en"]


def test_ids_are_unique_and_references_point_to_them(run):
    text = write_report(run, **predictions()).read_text()
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    references = re.findall(r'(?:href="#|url\(#|labelledby=")([^")]+)', text)
    assert len(references) > 20
    assert set(references) <= set(ids)


def test_an_empty_folder_gives_a_page_of_the_predictions_alone(tmp_path):
    page = written(tmp_path)
    assert "Confusion matrix" in page.text
    for absent in ("How it learned", "Where the time went", "What was run", "Made by", "Ranks"):
        assert absent not in page.text


def test_one_epoch_is_enough(run):
    write_metrics(run, [{"epoch": 1}])
    assert "training 0.5 in epoch 1;" in written(run).attributes("figure")[0]["aria-label"]


def test_not_a_number_is_a_gap_in_the_curve_and_said_in_the_page(run):
    write_metrics(run, [{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": float("nan"), "val_loss": float("inf")}])
    given = predictions()
    given["probabilities"][:3] = np.nan
    page = written(run, **given)
    assert "3 of 200 images got probabilities that are not numbers." in page.text
    assert "training 1 in epoch 1;" in page.attributes("figure")[0]["aria-label"]


def test_all_nan_still_makes_a_page(run):
    nothing = {key: float("nan") for key in ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")}
    write_metrics(run, [{"epoch": 1} | nothing])
    (run / "result.json").write_text('{"test_accuracy": NaN, "val_accuracy": NaN, "seconds": NaN, "status": "nan"}')
    page = written(run, probabilities=np.full((200, 10), np.nan, np.float32))
    assert page.attributes("figure") == []
    assert "0.00" in page.text


def test_no_mistakes_leaves_their_section_out(run):
    given = predictions()
    page = written(run, probabilities=np.eye(10, dtype=np.float32)[given["labels"]])
    assert "The worst mistakes" not in page.text
    assert "Most often confused" not in page.text


def test_an_epoch_that_was_trained_again_counts_once(run):
    write_metrics(run, [{"epoch": 1}, {"epoch": 2, "val_loss": 8.0}, {"epoch": 2, "val_loss": 0.25}])
    assert "to 0.25 in epoch 2" in written(run).attributes("figure")[0]["aria-label"]


def test_report_of_the_validation_split_tells_both_accuracies(run):
    page = written(run, split_name="validation")
    assert page.text.index("Test accuracy 80.00") < page.text.index("Validation accuracy")
    assert "images of the validation split" in page.text


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.yaml", "a: [1"), ("result.json", "{"), ("result.json", "[]"), ("metrics.jsonl", '{"epoch": 1}\n{"epo')],
)
def test_a_damaged_file_is_named(run, name, content):
    (run / name).write_text(content)
    with pytest.raises(InputError, match=name):
        write_report(run, **predictions())


def test_numbers_that_nobody_can_compute_with_make_a_page(run):
    huge = "9" * 400
    (run / "metrics.jsonl").write_text(f'{{"epoch": 1, "loss": {huge}, "val_loss": -{"9" * 5000}}}\n')
    values = f'"seconds": {huge}, "seconds_to_first_step": "x", "val_accuracy": {huge}, "timings": {{"a": 1e999}}'
    (run / "result.json").write_text(f"{{{values}}}")
    assert "Test accuracy" in written(run).text
    write_metrics(run, [{"epoch": 1, "loss": 1e308}, {"epoch": 2, "loss": -1e308}])
    assert "Test accuracy" in written(run).text


def test_a_path_of_any_bytes_makes_a_page(run):
    (run / "environment.json").write_text(json.dumps({"command": "python -m job.train --run caf\udce9"}))
    assert "caf\\udce9" in written(run).text


@pytest.mark.parametrize("name", ["environment.json", "result.json", "metrics.jsonl"])
def test_a_file_of_any_size_takes_no_memory(run, name):
    with (run / name).open("wb") as file:
        file.truncate(100 << 30)
    with pytest.raises(InputError, match=f"{name} can't be read: it has more than"):
        write_report(run, **predictions())


def test_a_page_that_can_not_be_made_leaves_the_old_one(run):
    before = write_report(run, **predictions()).read_bytes()
    with pytest.raises(ValueError, match="received"):
        write_report(run, **predictions() | {"class_names": ["only one"]})
    assert (run / "report.html").read_bytes() == before
    assert not list(run.glob(".report*"))


def test_the_same_run_gives_the_same_bytes(run):
    first = write_report(run, **predictions()).read_bytes()
    assert write_report(run, **predictions()).read_bytes() == first


@pytest.mark.parametrize(
    ("seconds", "said"), [(51.26, "51.3 s"), (252, "4 min 12 s"), (3599.7, "1 h 00 min"), (7380, "2 h 03 min")]
)
def test_durations_are_said_as_people_say_them(seconds, said):
    assert duration(seconds) == said
