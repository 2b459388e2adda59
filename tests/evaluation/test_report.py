"""The report page: self-contained, well formed, escaped, and showing the numbers it was given."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from report_samples import HOSTILE, make_matches, make_result

from rdcd.errors import UserError
from rdcd.evaluation import plots
from rdcd.evaluation.bootstrap import QueryBootstrap
from rdcd.evaluation.cases import NO_EDIT, ModelResult
from rdcd.evaluation.differences import differences
from rdcd.evaluation.metrics import Metrics, evaluate_matches
from rdcd.evaluation.metrics_copydays import CopydaysMetrics
from rdcd.evaluation.report import write_report
from rdcd.evaluation.report_gallery import SHOWN
from rdcd.evaluation.report_scores import compared
from rdcd.evaluation.score import ScoreRow
from rdcd.retrieval.knn import Matches

VOID = {"meta", "img", "br", "link", "input", "hr"}
CURVES = {"loss": {"total": ([0, 1, 2], [3.0, 2.0, 1.0]), "relational": ([0, 1, 2], [1.0, 0.5, 0.2])},
          "learning rate": {"lr": ([0, 1, 2], [0.0, 1.0, 0.5])}}


class Page(HTMLParser):
    """Parses a page; fails on unclosed or wrongly nested elements; keeps what tests ask about."""

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.ids, self.words, self.cells, self.images = [], [], [], [], [], []
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id"]
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)
        if any(tag in ("td", "th") for tag in self.open):
            self.cells[-1] += data

    @property
    def text(self):
        return "".join(self.words)


def empty_matches():
    return Matches(queries=np.array([], dtype=str), references=np.array([], dtype=str),
                   scores=np.array([], dtype=np.float32))


def render(tmp_path, **changes):
    arguments = {"title": "A run", "protocol": "disc", "image_path": lambda name: None, "provenance": {}}
    arguments |= changes
    write_report(tmp_path / "report.html", **arguments)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def pictures(tmp_path):
    """Names → files: one readable, one broken, one that is gone; other names are unknown."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (400, 300), (200, 30, 30)).save(folder / "good.png")
    (folder / "broken.jpg").write_bytes(b"not a picture")
    return {"good": folder / "good.png", "broken": folder / "broken.jpg", "gone": folder / "gone.jpg"}


def full_page(tmp_path, **changes):
    matches, pairs = make_matches(np.random.default_rng(2))
    results = [make_result(matches, pairs),
               make_result(matches, pairs, name="teacher", codec="PCAW8,L2norm,Flat")]
    families = {query: ["crop", "blur"][: i % 3] for i, (query, _) in enumerate(pairs)}
    provenance = {"command": "rdcd evaluate x=1", "config": {"k": 10, "codecs": ["Flat"]}, "seed": 7,
                  "git_commit": "0123abc", "versions": {"torch": "2.9"},
                  "weights_sha256": {"student": "f00d" * 16}, "written": "2025-01-01T00:00:00+00:00"}
    arguments = {"results": results, "pairs": pairs, "curves": CURVES, "families": families,
                 "provenance": provenance} | changes
    return render(tmp_path, **arguments), results, pairs


def test_page_is_self_contained_and_well_formed(tmp_path):
    source, _, _ = full_page(tmp_path)
    page = Page(source)
    assert "http:" not in source and "https:" not in source and "@import" not in source
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for key in ("src", "href", "xlink:href", "data", "srcset", "action"):
            if key in attributes:
                assert attributes[key].startswith(("#", "data:image/")), (tag, attributes)
    assert re.findall(r"url\((?!#)", source) == []
    assert len(page.ids) == len(set(page.ids))
    targets = {attributes[key][1:] for _, attributes in page.tags for key in ("href", "xlink:href")
               if attributes.get(key, "").startswith("#")} | set(re.findall(r"url\(#([^)]+)\)", source))
    assert targets <= set(page.ids)
    for colour in (plots.PAGE.ink, plots.PAGE.grid, *plots.PAGE.lines):
        assert colour not in source
    assert not list(tmp_path.glob(".*"))


def test_page_shows_the_metrics(tmp_path):
    source, results, pairs = full_page(tmp_path)
    page = Page(source)
    cells = page.cells
    for result in results:
        for row in result.rows:
            m = row.metrics
            uap = f"{100 * m.uAP:.2f}"
            norm, both = ("none", (uap, "")) if row.score_norm is None else (row.score_norm, ("", uap))
            expected = [row.codec, norm, *both, f"{100 * m.recall_at_p90:.2f}",
                        "–" if m.threshold_at_p90 is None else f"{m.threshold_at_p90:.4f}",
                        f"{100 * m.accuracy_at_1:.2f}"]
            assert any(cells[i:i + len(expected)] == expected for i in range(len(cells))), expected
    assert "µAP, %" in cells and "µAPSN, %" in cells
    for word in ("disc", "per_query", "the nearest references of every query",
                 f"{len(pairs)} ground-truth pairs", "rdcd evaluate x=1", '"codecs"', "0123abc", "torch",
                 "f00d" * 16, "efficientnet_b0", "2025-01-01"):
        assert word in page.text
    total = cells.index("all of these")
    headline = results[0].headline.metrics
    assert float(cells[total + 2]) == pytest.approx(100 * headline.accuracy_at_1, abs=0.006)
    assert float(cells[total + 3]) == pytest.approx(100 * headline.recall_at_p90, abs=0.006)


def test_names_are_escaped_everywhere(tmp_path):
    matches = Matches(queries=np.array([HOSTILE, HOSTILE]), references=np.array(["<b>R</b>", "R'1"]),
                      scores=np.array([0.4, 0.9], dtype=np.float32))
    pairs = [(HOSTILE, "<b>R</b>"), (HOSTILE, "<i>gone</i>")]
    row = ScoreRow("<u>codec", "<s>norm", "<em>rule", evaluate_matches(matches, pairs), matches)
    result = ModelResult("<h1>model $", {"<a>": "<img src=x>"}, [row])
    source = render(tmp_path, title="<title>&", protocol="<p>disc", results=[result, result], pairs=pairs,
                    curves={"<svg>": {"</svg><script>": ([0, 1], [1, 2]), "b": ([0], [1])}},
                    families={HOSTILE: ["<td>family"]},
                    provenance={"command": "<pre>", "config": {"<x>": "</pre>"}, "<k>": {"<n>": "<v>"}})
    page = Page(source)
    tags = [tag for tag, _ in page.tags]
    assert not {"script", "u", "s", "em", "img"} & set(tags)
    assert tags.count("h1") == 1 and tags.count("svg") == 2 and tags.count("title") == 1
    shown = HOSTILE.replace("\u202e", "\ufffd").replace("\udcff", "\ufffd")
    for text in (shown, "<b>R</b>", "R'1", "<i>gone</i>", "<u>codec", "<s>norm", "<h1>model $", "<a>",
                 "<img src=x>", "<title>&", "<td>family", "<pre>", "</pre>", "<n>", "<v>", "</svg><script>"):
        assert text in page.text, text
    assert any(attributes.get("title") == shown for _, attributes in page.tags)


def test_galleries_show_pictures_or_the_reason(tmp_path, pictures):
    matches = Matches(queries=np.array(["good", "broken"]), references=np.array(["gone", "unknown"]),
                      scores=np.array([0.9, 0.8], dtype=np.float32))
    pairs = [("good", "gone"), ("broken", "lost")]
    page = Page(render(tmp_path, results=[make_result(matches, pairs)], pairs=pairs, image_path=pictures.get))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert {image["alt"] for image in images} == {"query good"}
    for image in images:
        head, data = image["src"].split(",", 1)
        with Image.open(io.BytesIO(base64.b64decode(data))) as thumbnail:
            assert head == "data:image/jpeg;base64" and thumbnail.size == (160, 120)
    holes = {attributes["aria-label"] for _, attributes in page.tags if attributes.get("class") == "missing"}
    assert {"match gone: file not found", "wrong match unknown: no such picture",
            "true reference lost: no such picture"} <= holes
    assert any(hole.startswith("query broken: no sound file") for hole in holes)
    assert "not among the candidates" in page.text and "0.8000" in page.text


def test_galleries_are_bounded_and_folded(tmp_path):
    n = SHOWN + 5
    names = np.array([f"p{i}" for i in range(n)])
    matches = Matches(queries=names, references=names, scores=np.linspace(1, 0.5, n, dtype=np.float32))
    pairs = [(name, name) for name in names.tolist()]
    results = [make_result(matches, pairs)]

    def cards(source):
        return sum(attributes.get("class") == "case" for _, attributes in Page(source).tags)

    whole = render(tmp_path, results=results, pairs=pairs)
    assert cards(whole) == n and "5 more" in whole
    assert cards(render(tmp_path, results=results, pairs=pairs, n_pictures=3)) == 3
    none = render(tmp_path, results=results, pairs=pairs, n_pictures=0)
    assert cards(none) == 0 and "Best matches" not in none and "Every true reference ranks first." in whole


def test_a_second_true_reference_ahead_is_no_wrong_match(tmp_path):
    matches = Matches(queries=np.array(["q", "q"]), references=np.array(["r1", "r2"]),
                      scores=np.array([0.9, 0.8], dtype=np.float32))
    pairs = [("q", "r1"), ("q", "r2")]
    page = Page(render(tmp_path, results=[make_result(matches, pairs)], pairs=pairs))
    assert "also true, ahead" in page.text and "rank 2" in page.text and "ranked first" not in page.text
    assert "No candidate is a wrong pair." in page.text


@pytest.mark.parametrize("norms", [(None,), ("1.0[0,2]",)])
def test_empty_and_single_cases(tmp_path, norms):
    pairs = [("q", "r")]
    nothing = ModelResult("student", {}, [ScoreRow("Flat", norm, "global", Metrics(0.0, 0.0, 0.0, None),
                                                   empty_matches()) for norm in norms])
    page = Page(render(tmp_path, results=[nothing], pairs=pairs, families={"q": []}))
    for words in ("hence no curve", "No candidate is a correct pair.", "No candidate is a wrong pair.",
                  "not among the candidates", "no other candidate", "Nothing recorded.", NO_EDIT, "–"):
        assert words in page.text
    assert "Training curves" not in page.text and "best pairs over all queries" in page.text
    page = Page(render(tmp_path, results=[nothing], pairs=pairs, families={"other": ["crop"]}))
    assert "No query with a true reference has recorded edits." in page.text
    assert "By edit" not in Page(render(tmp_path, results=[nothing], pairs=pairs)).text
    assert "hence no curve" in Page(render(tmp_path, results=[nothing], pairs=[])).text


def test_protocol_that_names_its_rule_is_not_repeated(tmp_path):
    said = "disc, candidates per_query: 10 nearest references of every query"
    source, _, _ = full_page(tmp_path, protocol=said)
    assert said in source and "Candidates per_query" not in source


def test_mistakes_are_named_and_leave_no_file(tmp_path):
    with pytest.raises(UserError, match="results is empty"):
        render(tmp_path, results=[], pairs=[])
    matches, pairs = make_matches(np.random.default_rng(0))
    with pytest.raises(UserError, match="n_pictures=-1"):
        render(tmp_path, results=[make_result(matches, pairs)], pairs=pairs, n_pictures=-1)
    assert not list(tmp_path.iterdir())


def test_page_is_the_same_twice(tmp_path):
    assert full_page(tmp_path)[0] == full_page(tmp_path)[0]


def test_a_query_and_a_reference_of_one_name_are_two_pictures(tmp_path):
    matches = Matches(queries=np.array(["1", "2"]), references=np.array(["1", "1"]),
                      scores=np.array([0.9, 0.8], dtype=np.float32))
    for name, colour in (("query", "red"), ("reference", "blue")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{name}.png")
    page = Page(render(tmp_path, results=[make_result(matches, [("1", "1")])], pairs=[("1", "1")],
                       image_path=lambda name: tmp_path / "reference.png",
                       query_path=lambda name: tmp_path / "query.png"))
    shown = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(shown) == 4  # the best match and the false alarm, two pictures each
    for picture in shown:
        data = base64.b64decode(picture["src"].partition(",")[2])
        red, _, blue = Image.open(io.BytesIO(data)).convert("RGB").getpixel((4, 4))
        assert (red > blue) == picture["alt"].startswith("query"), picture["alt"]


def test_intervals_and_differences_are_shown(tmp_path):
    bootstrap = QueryBootstrap([f"Q{i}" for i in range(30)], resamples=100)
    results = []
    for seed, name in enumerate(("student", HOSTILE)):
        matches, pairs = make_matches(np.random.default_rng(seed))
        made = make_result(matches, pairs, name=name)
        results.append(ModelResult(name, {}, [replace(row, samples=bootstrap.pooled(matches, pairs))
                                              for row in made.rows]))
    rows = differences(results)
    page = Page(render(tmp_path, results=results, pairs=pairs, differences=rows))
    samples = results[0].rows[0].samples["uAP"]
    low, high = np.quantile(samples, (0.025, 0.975))
    assert f"{100 * low:.1f}–{100 * high:.1f}" in page.text
    difference, low, high = (100 * rows[0][key] for key in ("uAP", "uAP_low", "uAP_high"))
    assert f"{difference:+.2f} {low:+.1f} … {high:+.1f}" in page.text
    assert "Compared" in page.text and "differences" in page.ids
    assert "Compared" not in render(tmp_path, results=results[:1], pairs=pairs)


def test_hard_negatives_are_shown(tmp_path):
    matches, pairs = make_matches(np.random.default_rng(0))
    result = make_result(matches, pairs)
    rows = [replace(row, hard_negatives=(above, 1234)) for row, above in zip(result.rows, (None, 56))]
    page = Page(render(tmp_path, results=[replace(result, rows=rows)], pairs=pairs))
    assert "56 of 1,234" in page.text and "– of 1,234" in page.text


def test_copydays_has_its_own_columns(tmp_path):
    matches, pairs = make_matches(np.random.default_rng(0))
    row = ScoreRow("Flat", None, "per_query", CopydaysMetrics(0.875, 0.625), matches)
    page = Page(render(tmp_path, results=[ModelResult("student", {}, [row])], pairs=pairs))
    assert "strong mAP, %" in page.text and "87.50" in page.text and "62.50" in page.text
    assert "recall@P90" not in page.text


@pytest.mark.parametrize(("low", "high", "bold"), [(0.001, 0.02, True), (-0.02, -0.001, True), (-0.01, 0.01, False),
                                                   (0.0, 0.02, False)])
def test_a_difference_is_bold_where_its_interval_leaves_out_0(low, high, bold):
    row = {"model": "a", "other": "b", "codec": "Flat", "score_norm": None, "uAP": 0.005, "uAP_low": low,
           "uAP_high": high}
    assert ('class="n beyond"' in compared([row])) is bold
