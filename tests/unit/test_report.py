"""The report of a run: one file that is well-formed and says what the events say, however many or hostile they are."""

import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import golden
import pytest
from logs import STARTED, imagined, write_log
from pages import read_page
from runs import edit_manifest
from watching import Notes

import ntkpipe
from ntkpipe.configs.errors import NotFoundError, RunStoppedError, StorageError
from ntkpipe.pipeline.cli.report import report as write_report
from ntkpipe.pipeline.report.bins import NUM_BINS, TimeBins
from ntkpipe.pipeline.report.facts import Durations
from ntkpipe.pipeline.report.page import make_report
from ntkpipe.pipeline.report.timeline import LANE, MAX_LANES, Scale
from ntkpipe.pipeline.stopping import StopRequest
from ntkpipe.storage import layout
from ntkpipe.storage.locks import EpochLock
from ntkpipe.storage.stores.registry import open_store

EVIL = "<script>alert(1)</script>\"'&\u202e\x1b[2J<!--"
FETCHING = re.compile(r"https?://(?!www\.w3\.org)|//cdn|@import|url\(|src=|href=", re.IGNORECASE)
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "main", "header", "section", "footer", "h1", "h2", "p", "div"),
    *("span", "b", "i", "table", "thead", "tbody", "tr", "th", "td", "svg", "g", "rect", "path", "circle", "text"),
}
"""All that a report consists of; no script, no link, no picture, no form."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("report") / "run"
    ntkpipe.run(golden.config(), run)
    return run


@pytest.fixture
def copied(whole, tmp_path):
    """A run without events, to be given others."""
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "events")
    return tmp_path / "run"


def report(run):
    """Return the page of a run after the checks that every page must pass."""
    text = make_report(open_store(run))
    page = read_page(text)
    assert set(page.tags()) <= TAGS
    assert not FETCHING.search(text)
    assert not [name for one in page.all("*") for name in one.attributes if name.startswith("on")]
    policy = [one.attributes["content"] for one in page.all("meta") if "http-equiv" in one.attributes]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]
    return page


def tiles(page):
    """Return the facts in the header by name."""
    return {tile.all("span")[0].text: tile.all("b")[0].text for tile in page.all("div", "tile")}


def test_a_real_run_is_told_as_it_was(whole):
    page = report(whole)
    assert page.all("h1")[0].text == "goldenfinished"
    facts = tiles(page)
    assert (facts["tasks"], facts["failed attempts"], facts["workers"], facts["drivers"]) == ("13 of 13", "0", "1", "1")
    stages = {row[0]: int(row[1]) for row in page.section("Stages").rows()}
    assert stages == {"features": 4, "kernel": 7, "solve": 2}
    assert len(page.section("Timeline").all("rect", "task")) == 13
    assert len(page.section("Throughput").all("svg")) == 2
    assert page.section("Kernels").rows()[0][:2] == ["trntk0", "trntk0"]
    solutions = {row[0]: row[1:4] for row in page.section("Solutions").rows()}
    assert solutions["krr"] == ["trntk0", "cholesky", "converged"]
    assert page.section("What failed").all("p")[0].text == "Nothing is recorded to have failed."
    assert page.section("Drivers").rows()[0][-1] == "finished"


class Stopping(Notes):
    """Asks the driver to stop as soon as a block of a kernel is there."""

    def __init__(self):
        super().__init__()
        self.stop = StopRequest()

    def task(self, name, num_bytes):
        if name == "kernel":
            self.stop.request()


def test_a_run_that_was_stopped_and_is_worked_on_again_is_told_as_it_is_now(tmp_path):
    watcher = Stopping()
    with pytest.raises(RunStoppedError):
        ntkpipe.run(golden.config(), tmp_path / "run", progress=watcher, stop=watcher.stop)
    page = report(tmp_path / "run")
    assert page.all("h1")[0].all("span")[0].text == "interrupted"
    assert page.section("Drivers").rows()[0][-1].startswith("stopped: the driver was told to stop.")
    solutions = {row[0]: row[3] for row in page.section("Solutions").rows()}
    assert solutions == {"krr": "not committed", "sgd": "not committed"}
    with EpochLock(open_store(tmp_path / "run"), 30.0):
        page = report(tmp_path / "run")
        assert page.all("h1")[0].all("span")[0].text == "running"
        assert tiles(page)["drivers"] == "2"
        assert len(page.section("Drivers").rows()) == 1, "the second one has said nothing yet"


def test_an_interrupted_run_with_two_drivers_shows_both_and_the_gap(copied):
    write_log(copied, 1, list(imagined(300, 6))[:-60])
    write_log(copied, 2, imagined(120, 4, started=STARTED + 3 * 86_400))
    page = report(copied)
    drivers = page.section("Drivers").rows()
    assert [row[0] for row in drivers] == ["1", "2"]
    assert [row[-1] for row in drivers] == ["no last word", "finished"]
    assert drivers[1][3].startswith("2 d 23 h")
    assert tiles(page)["first to last event"].startswith("3 d")
    drawing = page.section("Timeline").all("svg")[0]
    assert len(drawing.all("rect", "band")) == 2
    assert len(drawing.all("rect", "gap")) == 1
    assert len(drawing.all("rect", "task")) == int(drivers[0][5]) + int(drivers[1][5])
    # Three days of nobody leave room for two minutes of work.
    assert float(drawing.all("rect", "gap")[0].attributes["width"]) < 60


def test_every_failure_is_marked_counted_and_told(copied):
    write_log(copied, 1, imagined(300, 6))
    page = report(copied)
    failed = page.section("What failed")
    counted = {(row[0], row[1], row[2]): int(row[3]) for row in failed.rows() if len(row) == 4}
    told = [row for row in failed.rows() if len(row) == 8]
    assert sum(counted.values()) == len(told) == 26
    assert counted["", "worker-lost", ""] == 1
    marks = page.section("Timeline").all("g", "failed")
    titles = [mark.all("title")[0].text for mark in marks]
    assert sum(int(title.removeprefix("failed attempts: ")) for title in titles) == 25
    assert len(page.section("Timeline").all("g", "lost")) == 1
    assert tiles(page)["failed attempts"] == "25"


@pytest.mark.parametrize(("kind", "told"), [("deadline", 1), ("worker-lost", 1), ("memory", 1), ("exception", 2)])
def test_a_worker_that_is_lost_with_its_task_is_one_incident(copied, kind, told):
    names = ("node-000:1000", "node-000:1001")
    lost, idle = (
        {"time": STARTED + 3, "event": "worker", "worker": name, "state": "lost", "message": f"{kind} of {name}"}
        for name in names
    )
    failure = {"event": "failure", "stage": "kernel", "task": "a", "worker": names[0], "kind": kind, "verdict": "again"}
    write_log(
        copied,
        1,
        [
            {"time": STARTED, "event": "start"},
            lost,
            {"time": STARTED + 3, "message": f"{kind} of {names[0]}"} | failure,
            # This one had nothing to do, and nobody else tells of it.
            idle,
            # The process that has its name now is another one.
            {"time": STARTED + 4, "event": "worker", "worker": names[1], "state": "ready"},
            {"time": STARTED + 5, "message": "its own"} | failure | {"worker": names[1]},
        ],
    )
    page = report(copied)
    rows = [row for row in page.section("What failed").rows() if len(row) == 8]
    assert sum(f"{kind} of {names[0]}" in row for row in rows) == told
    assert sum(f"{kind} of {names[1]}" in row for row in rows) == 1
    counted = {(row[0], row[1]): int(row[3]) for row in page.section("What failed").rows() if len(row) == 4}
    assert sum(counted.values()) == len(rows)
    assert counted["kernel", kind] == 2
    assert tiles(page)["failed attempts"] == "2"
    # Both workers are gone, whatever was told of them.
    assert len(page.section("Timeline").all("g", "lost")) == 2


def test_a_worker_that_never_answered_is_told_of_without_a_lane(copied):
    lost = {"time": STARTED + 3, "event": "worker", "worker": "", "state": "lost", "message": "no room for it"}
    write_log(copied, 1, [{"time": STARTED, "event": "start"}, lost, *list(imagined(50, 2))[1:]])
    page = report(copied)
    assert [row[0] for row in page.section("Workers").rows()] == ["node-000:1000", "node-000:1001"]
    assert ["worker-lost", "", "no room for it"] in [row[5:] for row in page.section("What failed").rows()]
    assert len(page.section("Timeline").all("g", "lost")) == 2


def test_a_slow_worker_is_seen(copied):
    write_log(copied, 1, imagined(600, 6))
    page = report(copied)
    speeds = {row[0]: float(row[5]) for row in page.section("Workers").rows()}
    assert min(speeds, key=speeds.__getitem__) == "node-000:1001"
    assert speeds["node-000:1000"] > 3 * speeds["node-000:1001"]
    busy = [row[3] for row in page.section("Workers").rows()]
    assert all(int(share.removesuffix(" %")) > 90 for share in busy)
    slowest = page.section("Slowest tasks").rows()
    assert {row[2] for row in slowest} == {"node-000:1001"}
    took = [float(row[3].removesuffix(" s")) for row in slowest]
    assert took == sorted(took, reverse=True)


def test_reads_are_counted_against_what_is_stored(copied):
    write_log(copied, 1, imagined(300, 6))
    section = report(copied).section("Reads")
    rows = {int(chunks): int(number) for chunks, number in section.rows()}
    assert set(rows) == {0, 1, 2}
    assert sum(rows.values()) == 150
    read = sum(chunks * number for chunks, number in rows.items())
    # Six kernels over four shards: features and diagonals of each.
    said = f"150 blocks of kernels have read {read} chunks. The run stores 48 chunks of features and diagonals: "
    assert section.all("p")[0].text == f"{said}each was read {read / 48:.2f} times on average."


def test_a_log_of_an_earlier_version_lacks_fields_and_is_told_all_the_same(copied):
    kept = ("time", "event", "stage", "task", "seconds", "bytes", "worker")
    events = [event for event in imagined(100, 3) if event["event"] in ("start", "stage", "commit", "finish")]
    write_log(copied, 1, [{key: value for key, value in event.items() if key in kept} for event in events])
    page = report(copied)
    assert {row[0]: row[1] for row in page.section("Stages").rows()} == {"features": "50", "kernel": "50"}
    assert page.section("Reads").all("p")[0].text == "No block of a kernel has recorded what it read."
    assert "did not record how much memory" in page.section("Workers").all("p")[0].text


STORED = sorted((Path(__file__).parents[1] / "fixtures/runs").glob("*.tar.xz"))


@pytest.mark.parametrize("stored", STORED, ids=[path.name for path in STORED])
def test_runs_that_earlier_versions_have_stored_have_a_report(stored, tmp_path):
    with tarfile.open(stored) as archive:
        archive.extractall(tmp_path, filter="data")
    page = report(tmp_path / "run")
    done, _, total = tiles(page)["tasks"].partition(" of ")
    drawn = len(page.section("Timeline").all("rect", "task"))
    assert (done, drawn) == (total, int(total))


@pytest.mark.parametrize(
    "events",
    [
        [],
        [{"event": "start"}],
        [{"event": "commit"}],
        [{"event": "failure"}, {"event": "worker"}, {"event": "stop"}, {"event": "finish"}, {"event": "hello"}],
        [{"event": "commit", "stage": 7, "task": [], "seconds": "x", "bytes": None, "worker": {}, "chunks_read": "y"}],
        [{"event": "commit", "seconds": 1e18, "bytes": 1e18, "peak_bytes": 1e18, "chunks_read": 1e18}] * 3,
        [{"event": "commit", "stage": str(number), "worker": str(number), "seconds": 0} for number in range(60)],
        [{"event": "failure", "kind": str(number)} for number in range(1_000)],
        [{"event": "stop", "message": "x" * 100_000}],
    ],
    ids=["none", "start", "bare", "others", "types", "huge", "many names", "many kinds", "long"],
)
def test_whatever_events_say_there_is_a_page(copied, events):
    write_log(copied, 1, [{"time": STARTED + at} | event for at, event in enumerate(events)])
    report(copied)


def test_damaged_lines_are_named(copied):
    write_log(copied, 1, imagined(50, 2), per_segment=20)
    with (copied / layout.events(1, 1)).open("a") as file:
        file.write('{"time": 1, "ev')
    (copied / layout.events(1, 2)).unlink()
    doubtful = report(copied).section("What is doubtful")
    assert [one.text for one in doubtful.all("p")] == [
        f"{layout.events(1, 1)}, line 21, cannot be read",
        f"{layout.events(1, 2)} is missing",
    ]


def test_a_clock_that_goes_back_makes_nothing_negative(copied):
    events = list(imagined(200, 4))
    for event in events[100:]:
        event["time"] -= 3600
    write_log(copied, 1, events)
    write_log(copied, 2, imagined(100, 4, started=STARTED - 86_400))
    page = report(copied)
    doubtful = page.section("What is doubtful").all("p")[-1].text
    assert doubtful.startswith("Clocks went back by 24 h 1 min")
    for one in [*page.all("rect"), *page.all("circle")]:
        assert all(float(one.attributes.get(name, 0)) >= 0 for name in ("x", "y", "width", "height", "r"))
    assert not re.search(r"nan|inf\b|-\d+(\.\d+)? (s|min|h)", page.section("Timeline").text.lower())
    assert page.section("Drivers").rows()[1][3] == "", "no gap is known"


def test_names_and_messages_are_shown_as_they_are_written(copied):
    write_log(copied, 1, [{"time": STARTED, "event": "start", "host": EVIL, "process": 1}, *(
        {"time": STARTED + 5, "event": name, "stage": EVIL, "task": EVIL, "worker": EVIL, "kind": EVIL, "seconds": 1.0,
         "message": EVIL, "verdict": EVIL, "device": EVIL, "state": EVIL, "text": EVIL, "chunks_read": 1}
        for name in ("commit", "failure", "worker", "stop", EVIL)
    )])  # fmt: skip
    edit_manifest(copied, lambda manifest: manifest.update(name=EVIL, origin=EVIL))
    page = report(copied)
    shown = EVIL.replace("\u202e", r"\u202e").replace("\x1b", r"\x1b")
    assert page.all("title")[0].text == f"{shown}: finished"
    assert page.all("h1")[0].text == f"{shown}finished"
    fault = next(row for row in page.section("What failed").rows() if len(row) == 8)
    assert fault[3:8] == [shown] * 5
    worker = page.section("Workers").rows()[0]
    assert (worker[0], worker[1], worker[8]) == (shown, shown, shown)
    assert f"process 1 on {shown}" in page.section("Drivers").rows()[0]


def test_secrets_in_messages_are_not_shown(copied, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
    text = "https://hub/?token=hf_abcdefghijklmnop is not there"
    write_log(copied, 1, [{"time": STARTED, "event": kind, "message": text} for kind in ("failure", "stop")])
    assert "hf_abcdefghijklmnop" not in make_report(open_store(copied))


MEASURED = """
import resource, sys
from pathlib import Path
from ntkpipe.pipeline.report.page import make_report
from ntkpipe.storage.stores.registry import open_store
import ntkpipe.storage.schema
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
Path(sys.argv[2]).write_text(make_report(open_store(sys.argv[1])), encoding="utf-8")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def check_many(page, num_tasks):
    """Check a page of so many tasks that they are not drawn one by one."""
    half = f"{num_tasks // 2:,}"
    assert {row[0]: row[1] for row in page.section("Stages").rows()} == {"features": half, "kernel": half}
    drawing = page.section("Timeline").all("svg")[0]
    assert not drawing.all("rect", "task")
    assert len(drawing.all("text")) <= MAX_LANES + 15
    # Everybody is busy to the end: the heights of each lane add up to its area.
    heights = sum(
        float(height)
        for path in drawing.all("path", "bins")
        for height in re.findall(r"v-([\d.]+)", path.attributes["d"])
    )
    lanes = len(drawing.all("text", None)) - len(drawing.all("text", "soft"))
    assert heights / (lanes * LANE * NUM_BINS) > 0.4
    assert len(page.section("Workers").rows()) == min(60, int(tiles(page)["workers"]))


@pytest.mark.parametrize("num_workers", [40, 200])
def test_many_tasks_are_drawn_as_shares_of_time(copied, num_workers):
    write_log(copied, 1, imagined(4_000, num_workers))
    check_many(report(copied), 4_000)


@pytest.mark.slow
def test_a_hundred_thousand_tasks_make_a_small_page_in_little_memory(copied, tmp_path):
    write_log(copied, 1, imagined(100_000, 200))
    command = [sys.executable, "-c", MEASURED, str(copied), str(tmp_path / "page.html")]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert int(found.stdout) < 40_000, "kilobytes; the log itself is larger"
    text = (tmp_path / "page.html").read_text()
    assert len(text.encode()) < 500_000
    check_many(read_page(text), 100_000)


def test_the_command_writes_the_page_where_it_is_told(whole, tmp_path):
    from commands import ntkpipe_command

    out = tmp_path / "page.html"
    found = ntkpipe_command("report", whole, "--out", out)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.replace("\n", "") == f"wrote {out}"
    assert read_page(out.read_text()).all("h1")[0].text == "goldenfinished"
    with pytest.raises(StorageError, match="cannot be written"):
        write_report(str(whole), tmp_path / "no" / "folder.html")


def test_where_there_is_no_run_there_is_no_report(tmp_path):
    with pytest.raises(NotFoundError, match="is not a run"):
        make_report(open_store(tmp_path))


def test_amounts_are_kept_whatever_the_time_turns_out_to_be():
    bins, total = TimeBins(), 0.0
    for number in range(2_000):
        bins.add("key", number * 0.7, number * 0.7 + 3.1, 1.5)
        total += 1.5
    values = bins.get("key")
    assert sum(values) == pytest.approx(total)
    used = round(2_000 * 0.7 / bins.width)
    assert NUM_BINS / 2 <= used <= NUM_BINS
    inside = values[2 : used - 2]
    assert max(inside) == pytest.approx(min(inside), rel=0.1)
    assert bins.merged(["key", "other"]) == values
    assert bins.get("other") == [0.0] * NUM_BINS


def test_quantiles_are_known_to_within_a_few_percent():
    took = Durations()
    for number in range(1, 10_001):
        took.add(number / 1000)
    assert took.quantile(0.5) == pytest.approx(5.0, rel=0.05)
    assert took.quantile(0.95) == pytest.approx(9.5, rel=0.05)
    assert took.quantile(1.0) <= took.longest == 10.0
    assert Durations().quantile(0.5) == 0.0


@pytest.mark.parametrize("stop", [1e-3, 0.3, 4.9, 5.0, 61.0, 3600.0, 86_400.0 * 30, 1e12])
def test_an_axis_has_a_few_marks_whatever_its_length(stop):
    marks = list(Scale(stop).marks())
    assert 2 <= len(marks) <= 12
    assert marks[0] == 0.0
    assert marks[-1] <= stop * 1.001
