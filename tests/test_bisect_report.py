"""Reports of bisect: looked at in a real browser, written whole or not at all, and the same for the same input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import named
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from reports import MISCHIEF, Pair, write_pair

from onnxbench.bisection import Bisection, bisect, write_bisection
from onnxbench.errors import MissingDependencyError, OutputError, UsageError
from onnxbench.feeding import FeedOptions
from onnxbench.reporting import Drawing, Node, heat_of, place_of

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = json.loads((ROOT / "docs" / "bisect-report.schema.json").read_text(encoding="utf-8"))
LAYERS = 40
TENSORS = LAYERS * 5 + 1
MANY = 1000
PATIENCE = 30
"""Seconds that an operation in the browser may take at most; on an idle machine, none takes half of one."""


def _need(module: str) -> Any:
    """Returns a module; one that is absent skips the test, or fails it in continuous integration."""
    if os.environ.get("CI"):
        return __import__(module)
    return pytest.importorskip(module)


for _module in ("plotly", "jinja2", "fast_sugiyama"):
    _need(_module)


def _bisect(pair: Pair, **options: Any) -> Bisection:
    return bisect(pair.suspect, against=pair.reference, feeds=FeedOptions([str(pair.feeds)]), **options)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return write_pair(tmp_path_factory.mktemp("pair"), layers=LAYERS, names=MISCHIEF)


@pytest.fixture(scope="module")
def found(pair: Pair) -> Bisection:
    return _bisect(pair, evidence=True)


@pytest.fixture(scope="module")
def report(found: Bisection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reports") / "report"
    write_bisection(folder, found)
    return folder


# ---------------------------------------------------------------- the folder


def test_the_data_are_as_their_schema_says(report: Path, found: Bisection, pair: Pair) -> None:
    Draft202012Validator.check_schema(SCHEMA)
    data = json.loads((report / "report.json").read_text(encoding="utf-8"))
    Draft202012Validator(SCHEMA).validate(data)
    assert (data["schema_version"], data["command"], data["result"]["verdict"]) == (1, "bisect", found.verdict)
    assert len(data["result"]["tensors"]) == TENSORS
    suspect, reference = data["result"]["evidence"]["models"]
    assert suspect["sha256"] == _sha256(pair.suspect)
    assert reference["sha256"] == _sha256(pair.reference)
    (histogram,) = data["result"]["evidence"]["histograms"]
    assert histogram["tensor"] == pair.culprit
    assert {side: sum(counts) for side, counts in histogram["counts"].items()} == dict.fromkeys(histogram["counts"], 64)
    culprit = next(row for row in data["result"]["tensors"] if row["tensor"] == pair.culprit)
    assert culprit["inputs"] == ["t99"]
    assert (culprit["module"], culprit["source"]) == ("encoder.layer.20.part0", "/home/me/my net/net#1.py:10")


def _sha256(file: Path) -> str:
    done = subprocess.run(["sha256sum", file], capture_output=True, text=True, check=True)
    return done.stdout.split()[0]


def test_every_field_is_in_the_schema(report: Path) -> None:
    """A field that is added to the result is added to the schema."""
    data = json.loads((report / "report.json").read_text(encoding="utf-8"))
    result = SCHEMA["properties"]["result"]
    assert set(result["properties"]) == set(data["result"])
    assert set(SCHEMA["$defs"]["row"]["properties"]) == set(data["result"]["tensors"][0])
    assert set(SCHEMA["$defs"]["culprit"]["properties"]) == set(data["result"]["culprits"][0])


def test_the_same_input_gives_the_same_bytes(pair: Pair, tmp_path: Path) -> None:
    for number in (1, 2):
        code = (
            "import sys; from onnxbench import bisect; from onnxbench.feeding import FeedOptions\n"
            "suspect, against, feeds, report = sys.argv[1:]\n"
            "bisect(suspect, against=against, feeds=FeedOptions([feeds]), on='ort:none,threads=1',"
            " reference_on='ort:none,threads=1', report=report)"
        )
        words = [pair.suspect, pair.reference, pair.feeds, tmp_path / f"deep/er/{number}"]
        environment = {**os.environ, "PYTHONHASHSEED": str(number)}
        subprocess.run([sys.executable, "-c", code, *words], check=True, env=environment, timeout=120)
    for name in ("report.html", "report.json"):
        one, other = ((tmp_path / "deep/er" / number / name).read_bytes() for number in "12")
        assert one == other


def test_an_earlier_report_is_replaced_and_nothing_else_is(pair: Pair, tmp_path: Path) -> None:
    small = write_pair(tmp_path / "small", layers=2)
    target = tmp_path / "report"
    target.mkdir()
    _bisect(small, report=target)
    (target / "report.html").write_text("old", encoding="utf-8")
    _bisect(small, report=target)
    assert (target / "report.html").stat().st_size > 1 << 20
    assert sorted(path.name for path in target.iterdir()) == ["report.html", "report.json"]
    (target / "mine.txt").write_text("mine", encoding="utf-8")
    started = time.monotonic()
    with pytest.raises(OutputError, match="is no report of 'bisect'"):
        _bisect(small, report=target)
    assert time.monotonic() - started < PATIENCE
    assert (target / "mine.txt").read_text(encoding="utf-8") == "mine"
    with pytest.raises(OutputError, match="no folder"):
        _bisect(small, report=small.suspect)
    with pytest.raises(OutputError, match="cannot write"):
        _bisect(small, report=small.suspect / "below" / "a" / "file")
    with pytest.raises(UsageError, match="a folder each"):
        _bisect(small, report=tmp_path / "one", repro=tmp_path / "one")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_report_that_cannot_be_written_leaves_the_earlier_one(pair: Pair, tmp_path: Path) -> None:
    """The files that a process may write are limited to 64 KiB, so writing stops in the middle of one."""
    target = tmp_path / "report"
    small = write_pair(tmp_path / "small", layers=2)
    _bisect(small, report=target)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    code = (
        "import sys; from onnxbench import bisect; from onnxbench.bisection import write_bisection\n"
        "import resource\n"
        "found = bisect(sys.argv[1], against=sys.argv[2], evidence=True)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))\n"
        "write_bisection(sys.argv[3], found)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, small.suspect, small.reference, target],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "no report was left behind" in done.stderr
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report", "small"]


def test_what_is_missing_is_told_before_the_search(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['plotly'] = None; sys.modules['fast_sugiyama'] = None\n"
        "from onnxbench import bisect\n"
        "bisect('absent.onnx', report=sys.argv[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "r"], capture_output=True, text=True, timeout=60)
    assert MissingDependencyError.__name__ in done.stderr
    assert "plotly and fast-sugiyama, which are not installed" in done.stderr
    assert "pip install 'onnxbench[report]'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_a_report(pair: Pair, tmp_path: Path) -> None:
    words = [pair.suspect, "--against", pair.reference, "--feeds", pair.feeds, "--report", tmp_path / "r"]
    command = [sys.executable, "-m", "onnxbench", "bisect", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert f"wrote {tmp_path / 'r'}: open {tmp_path / 'r' / 'report.html'}" in done.stdout
    tree = done.stdout[done.stdout.index("modules (own error in red") :]
    assert "encoder.layer.20.part0" in tree
    assert "more with errors that they inherit (--report shows all)" in tree
    assert len(tree.splitlines()) < 40


@pytest.mark.parametrize("name", ["clean", "bodies", "recorded", "one node"])
def test_every_result_has_a_page(name: str, tmp_path: Path) -> None:
    """No culprit, culprits in bodies, recorded values, and a graph without edges."""
    if name == "clean":
        model = write_pair(tmp_path / "models", layers=3).reference
        bisect(model, on="ort:all", report=tmp_path / "r")
    elif name == "one node":
        model = write_pair(tmp_path / "models", layers=1, wide=1)
        _bisect(model, report=tmp_path / "r")
    elif name == "bodies":
        case = named("loop_while")
        bisect(case.path, on="ort:all", feeds=case.feeds(), report=tmp_path / "r")
    else:
        model = write_pair(tmp_path / "models", layers=3)
        values = {"x": np.ones((4, 16), np.float32), "t3": np.full((4, 16), np.nan, np.float32)}
        found = bisect(model.suspect, recorded=values, feeds={"x": values["x"]}, report=tmp_path / "r")
        assert not found.passed
    data = json.loads((tmp_path / "r/report.json").read_text(encoding="utf-8"))
    Draft202012Validator(SCHEMA).validate(data)
    assert "<svg" in (tmp_path / "r/report.html").read_text(encoding="utf-8")


@pytest.mark.torch
def test_a_report_on_pytorch_knows_modules_and_what_it_was_compared_with(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from onnxbench import export, torch_reference

    def build(scale: float) -> Any:
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.Linear(8, 8)).eval()
        with torch.no_grad():
            module[2].weight.mul_(scale)
        return module, (torch.ones(2, 8),)

    export(build(1.0), tmp_path / "model.onnx")
    other = torch_reference(build(1.01))
    assert not bisect(tmp_path / "model.onnx", against=other, report=tmp_path / "r").passed
    data = json.loads((tmp_path / "r/report.json").read_text(encoding="utf-8"))
    Draft202012Validator(SCHEMA).validate(data)
    assert {row["module"] for row in data["result"]["tensors"]} == {"0", "1", "2"}
    assert data["result"]["evidence"]["models"][1]["sha256"] == other.digest() == torch_reference(build(1.01)).digest()
    assert other.digest() != torch_reference(build(1.0)).digest()


def test_plotly_knows_all_that_charts_say(found: Bisection) -> None:
    """Its Python side refuses a property that there is not; colours of the page are replaced in the browser."""
    from plotly import graph_objects

    from onnxbench.bisection._page import _page
    from onnxbench.reporting import Chart

    charts = [block for section in _page(found).sections for block in section.blocks if isinstance(block, Chart)]
    assert [chart.name for chart in charts] == ["values0", "depth"]
    for chart in charts:
        text = json.dumps({"data": chart.traces, "layout": chart.layout})
        for name in ("own", "inherited", "total", "reference", "bad", "faint"):
            text = text.replace(f"var(--{name})", "#123456")
        assert "var(" not in text
        graph_objects.Figure(json.loads(text))


# ---------------------------------------------------------------- drawings, places, heat


@given(st.integers(1, 30), st.data())
def test_boxes_lie_apart_and_lines_join_them(count: int, data: st.DataObject) -> None:
    from onnxbench.reporting._drawing import BOX, lay_out

    pairs = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)).filter(lambda pair: pair[0] < pair[1])
    edges = data.draw(st.lists(pairs, max_size=60)) if count > 1 else []
    drawing = Drawing("d", [Node("Op", f"n{at}") for at in range(count)], edges)
    laid = lay_out(drawing)
    assert [box.node.name for box in laid.boxes] == [node.name for node in drawing.nodes]
    for at, one in enumerate(laid.boxes):
        assert BOX[0] / 2 <= one.x <= laid.width - BOX[0] / 2
        assert BOX[1] / 2 <= one.y <= laid.height - BOX[1] / 2
        for other in laid.boxes[:at]:
            assert abs(one.x - other.x) >= BOX[0] or abs(one.y - other.y) >= BOX[1]
    ends = set()
    for path, _ in laid.lines:
        words = path.replace("M", "").replace("C", " ").replace("V", " ").split()
        ends.add((tuple(map(float, words[:2])), tuple(map(float, words[-2:]))))
    middle = {at: (box.x, box.y) for at, box in enumerate(laid.boxes)}
    wanted = set()
    for source, target in edges:
        (x, y), (u, v) = middle[source], middle[target]
        assert y < v
        wanted.add(((x, round(y + BOX[1] / 2, 6)), (u, round(v - BOX[1] / 2, 6))))
    assert ends == wanted


def test_places_lead_to_files_that_can_be_found() -> None:
    assert place_of("/home/me/my net/net#1.py:12").href == "file:///home/me/my%20net/net%231.py"
    assert place_of("C:\\me\\net.py:3").href == "file:///C:/me/net.py"
    assert place_of("net.py:12").href is None
    assert place_of("javascript:alert(1):12").href is None
    assert place_of("<stdin>:1").href is None
    assert place_of(None).text == ""
    assert place_of("/a/net.py:12").short == "net.py:12"


def test_heat_is_logarithmic() -> None:
    assert [heat_of(value, cold=1, hot=1e9) for value in (0, 1, 1.1, 1e3, 1e9, float("inf"), float("nan"))] == [
        0, 0, 1, 3, 9, 9, 0,
    ]  # fmt: skip


# ---------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium that is driven by selenium."""
    _need("selenium")
    places = shutil.which("chromium"), shutil.which("chromedriver")
    if not all(places):
        words = "there is no chromium with its chromedriver (Debian: apt-get install chromium chromium-driver)"
        pytest.fail(words) if os.environ.get("CI") else pytest.skip(words)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(places[0])
    for flag in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
        "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1300,900",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(places[1])))
    driver.set_page_load_timeout(2 * PATIENCE)
    driver.set_script_timeout(PATIENCE)
    yield driver
    driver.quit()


class _Page:
    """A report that is open in a browser."""

    def __init__(self, driver: Any, file: Path) -> None:
        self.driver = driver
        driver.get_log("performance")
        driver.get_log("browser")
        driver.get(file.as_uri())
        assert self.js("return document.documentElement.dataset.ready") == "yes"

    def js(self, code: str, *words: Any) -> Any:
        return self.driver.execute_script(code, *words)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        return self.js("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector)

    def column(self, number: int) -> list[str]:
        return self.texts(f'[data-table="tensors"] tbody tr.opens td:nth-child({number})')

    def heading(self, title: str) -> Any:
        (found,) = [each for each in self.all('[data-table="tensors"] th') if each.text.split(" ▼")[0] == title]
        return found

    def errors(self) -> list[Any]:
        return [entry for entry in self.driver.get_log("browser") if entry["level"] != "DEBUG"]

    def requests(self) -> list[str]:
        """Returns what was asked for since the page was opened, files and data in place included."""
        found = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
                said = message["params"]
                if not said.get("documentURL", "file:").startswith(("chrome:", "data:")):  # its first page
                    found.append(said.get("request", said)["url"])
        return found


@pytest.fixture
def page(chromium: Any, report: Path) -> Iterator[_Page]:
    made = _Page(chromium, report / "report.html")
    yield made
    assert made.errors() == []


@pytest.mark.browser
def test_the_page_asks_for_nothing_and_complains_of_nothing(page: _Page, report: Path, found: Bisection) -> None:
    assert page.requests() == [(report / "report.html").as_uri()]
    assert page.one("h1").text.split(maxsplit=1)[1] == found.verdict
    drawn = page.js(
        "return [...document.querySelectorAll('.chart')].map((e) => e.querySelectorAll('.main-svg').length)"
    )
    assert len(drawn) == 2
    assert all(drawn)
    assert page.js("return document.documentElement.scrollWidth <= window.innerWidth")
    assert page.errors() == []


@pytest.mark.browser
def test_tables_sort(page: _Page, found: Bisection) -> None:
    heading = page.heading("× rounding")
    assert heading.get_attribute("aria-sort") == "descending"
    assert page.column(1)[0].startswith(f"layer{LAYERS // 2}/Mul_0")
    heading = page.heading("Depth")
    heading.find_element("css selector", "button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert page.column(8)[:2] == [str(TENSORS - 1), str(TENSORS - 2)]
    heading.find_element("css selector", "button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert page.column(8)[:2] == ["0", "1"]
    page.heading("Operator").find_element("css selector", "button").click()
    assert page.column(2)[:50] == sorted(row.op_type for row in found.tensors)[:50]
    assert page.heading("Depth").get_attribute("aria-sort") is None


@pytest.mark.browser
def test_tables_are_filtered_and_turned(page: _Page) -> None:
    field = page.one('[data-table="tensors"] input[type="search"]')
    status = page.one('[data-table="tensors"] output')
    assert status.text == f"{TENSORS} of {TENSORS} rows"
    next_page = page.all('[data-table="tensors"] .pages button')[1]
    next_page.click()
    assert page.one('[data-table="tensors"] .pages span').text == "rows 51 to 100"
    field.send_keys("layer.7. tanh")
    assert status.text == f"1 of {TENSORS} rows"
    assert page.column(2) == ["Tanh"]
    field.clear()
    field.send_keys("nothing like it")
    assert status.text == f"0 of {TENSORS} rows"
    assert not next_page.is_enabled()


@pytest.mark.browser
def test_a_click_on_a_node_shows_its_row(page: _Page, found: Bisection) -> None:
    page.one('[data-table="tensors"] input[type="search"]').send_keys("nothing like it")
    node = page.one(".drawing .node.focus")
    assert node.get_attribute("aria-label").splitlines()[1] == f"layer{LAYERS // 2}/Mul_0"
    page.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", node)
    node.click()
    opened = page.one("tr.opened")
    assert found.culprits[0].tensor in opened.text
    assert "/home/me/my net/net#1.py:10" in opened.text
    assert page.js("return document.activeElement.className") == "opener"
    assert page.js("return document.activeElement.getAttribute('aria-expanded')") == "true"
    assert "picked" in node.get_attribute("class")
    links = opened.find_elements("css selector", "a[data-row]")
    assert [link.text for link in links] == ["t99"]
    links[0].click()  # on to what it is computed from
    assert page.one("tr.opened dd").text == f"layer{LAYERS // 2 - 1}/Sub_4"
    link = page.one('[data-table="tensors"] tr.picked td.place a')
    assert (link.text, link.get_attribute("href")) == ("net#1.py:14", "file:///home/me/my%20net/net%231.py")


@pytest.mark.browser
def test_the_keyboard_is_enough(page: _Page) -> None:
    from selenium.webdriver.common.keys import Keys

    node = page.one(".drawing .node.focus")
    page.js("arguments[0].focus()", node)
    assert page.js("return document.activeElement === arguments[0]", node)
    node.send_keys(Keys.ENTER)
    opener = page.driver.switch_to.active_element
    assert opener.get_attribute("aria-expanded") == "true"
    opener.send_keys(Keys.ENTER)
    assert not page.all("tr.opened")
    unnamed = page.js(
        "return [...document.querySelectorAll('button, a[href], input, [tabindex]')]"
        ".filter((e) => e.checkVisibility() && !e.closest('.chart'))"
        ".filter((e) => !(e.textContent.trim() || e.ariaLabel || (e.labels && e.labels.length)))"
        ".map((e) => e.outerHTML.slice(0, 200))"
    )
    assert unnamed == []


@pytest.mark.browser
def test_a_module_shows_its_tensors(page: _Page) -> None:
    layer = f"encoder.layer.{LAYERS // 2}"
    button = page.one(f'.tree [data-module="{layer}"] button')
    page.js("arguments[0].scrollIntoView({block: 'center'})", button)
    was_open = page.js("return arguments[0].closest('details').open", button)
    button.click()
    assert page.js("return arguments[0].closest('details').open", button) == was_open
    assert page.one('[data-table="tensors"] output').text == f"5 of {TENSORS} rows"
    assert {text.rpartition(".")[0] for text in page.column(9)} == {layer}
    chip = page.one('[data-table="tensors"] .chip')
    assert chip.text == f"in {layer} ✕"
    chip.click()
    assert page.one('[data-table="tensors"] output').text == f"{TENSORS} of {TENSORS} rows"


@pytest.mark.browser
def test_a_click_on_a_point_shows_its_row(page: _Page) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    chart = page.one("#chart-depth")
    page.js("arguments[0].scrollIntoView({block: 'center'})", chart)
    point = chart.find_elements("css selector", ".scatterlayer .trace")[-1].find_element("css selector", "path.point")
    ActionChains(page.driver).move_to_element(point).pause(0.2).click().perform()
    assert page.one("tr.opened dd").text == f"layer{LAYERS // 2}/Mul_0"


@pytest.mark.browser
def test_names_are_only_names(page: _Page, pair: Pair) -> None:
    page.heading("Depth").find_element("css selector", "button").click()
    page.heading("Depth").find_element("css selector", "button").click()
    assert page.column(1)[: len(MISCHIEF)] == list(MISCHIEF)
    for at in range(len(MISCHIEF)):
        page.js("document.querySelectorAll('[data-table=\"tensors\"] .opener')[arguments[0]].click()", at)
        assert page.js("return document.querySelector('tr.opened dd').textContent") == MISCHIEF[at]
    assert page.js("return window.hacked") is None
    assert page.all("img, b, iframe") == []
    assert len(page.all("script")) == 3
    assert all(not href.startswith("javascript") for href in page.js("return [...document.links].map((a) => a.href)"))
    assert page.requests()[1:] == []


@pytest.mark.browser
def test_there_is_a_dark_form(page: _Page) -> None:
    background = "return getComputedStyle(document.body).backgroundColor"
    ink = "return document.querySelector('#chart-depth .xtick text').style.fill"
    light = page.js(background), page.js(ink)
    page.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    deadline = time.monotonic() + PATIENCE
    while page.js(ink) == light[1] and time.monotonic() < deadline:
        time.sleep(0.05)
    dark = page.js(background), page.js(ink)
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert light[0] == "rgb(255, 255, 255)"
    assert dark[0] == "rgb(20, 23, 28)"
    assert light[1] != dark[1]


@pytest.mark.browser
def test_it_can_be_read_without_javascript(chromium: Any, report: Path, found: Bisection) -> None:
    chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        chromium.get((report / "report.html").as_uri())
        text = chromium.find_element("css selector", "body").text
        rows = chromium.find_elements("css selector", '[data-table="tensors"] tbody tr')
        boxes = chromium.find_elements("css selector", ".drawing .node")
    finally:
        chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert found.verdict in text
    assert "Charts need JavaScript" in text
    assert f"These are the first 50 of {TENSORS} rows" in text
    assert "encoder.layer" in text
    assert len(rows) == 50
    assert len(boxes) > 5


@pytest.mark.browser
def test_thousands_of_tensors_stay_responsive(chromium: Any, tmp_path: Path) -> None:
    """Each step is waited for; a page that is stuck runs into the limits of the driver."""
    many = write_pair(tmp_path, layers=MANY)
    _bisect(many, report=tmp_path / "report")
    started = time.monotonic()
    page = _Page(chromium, tmp_path / "report/report.html")
    count = f"{MANY * 5 + 1:,}"
    assert page.one('[data-table="tensors"] output').text == f"{count} of {count} rows"
    assert len(page.column(1)) == 50
    for title in ("Node", "Operator", "Max abs", "Module", "Depth"):
        page.heading(title).find_element("css selector", "button").click()
        assert page.heading(title).get_attribute("aria-sort")
    field = page.one('[data-table="tensors"] input[type="search"]')
    field.send_keys("layer.77.")
    assert page.one('[data-table="tensors"] output').text == f"5 of {count} rows"
    page.js("document.querySelector('.drawing .node.focus').dispatchEvent(new MouseEvent('click', {bubbles: true}))")
    assert page.one("tr.opened dd").text == f"layer{MANY // 2}/Mul_0"
    page.all('[data-table="tensors"] .pages button')[1].click()
    assert page.errors() == []
    assert time.monotonic() - started < 4 * PATIENCE
