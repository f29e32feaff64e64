"""How fast stages are, and how that is shown: bars on a terminal, lines elsewhere."""

import io
import re

import pytest
from rich.console import Console

from ntkpipe.configs.units import duration, size
from ntkpipe.pipeline.cli.progress import ProgressDisplay, speed_lines
from ntkpipe.pipeline.meters import Meters, StageMeter
from ntkpipe.pipeline.status import RunStatus, StageStatus


class Hands:
    """A clock that is moved by hand."""

    def __init__(self):
        self.at = 1000.0

    def __call__(self):
        return self.at


@pytest.fixture
def clock():
    return Hands()


def lines(clock, script, **options):
    """Return what a display prints of what a script tells it."""
    out = io.StringIO()
    with ProgressDisplay(Console(file=out, width=100, **options), clock) as display:
        script(display)
    return out.getvalue()


def test_a_resumed_stage_is_as_fast_as_what_is_done_now(clock):
    meter = StageMeter(900, 1000, clock)
    for _ in range(10):
        clock.at += 2
        meter.count(50)
    assert meter.done == 910
    assert meter.rates() == pytest.approx((0.5, 25.0))
    assert meter.seconds_left == pytest.approx(180.0)


def test_the_rate_is_that_of_the_last_minute(clock):
    meter = StageMeter(0, 10_000, clock)
    for _ in range(300):
        clock.at += 1
        meter.count(1)
    for _ in range(70):
        clock.at += 1
        for _ in range(5):
            meter.count(1)
    assert meter.rates()[0] == pytest.approx(5.0, rel=0.1)
    clock.at += 60  # and nothing is finished
    assert meter.rates()[0] < 3


def test_nothing_is_predicted_before_anything_is_finished(clock):
    meter = StageMeter(3, 10, clock)
    clock.at += 5
    assert meter.rates() == (0.0, 0.0)
    assert meter.seconds_left is None


def test_a_stage_that_is_announced_again_has_not_become_faster(clock):
    meters = Meters(clock)
    meters.stage("kernel", 0, 10)
    clock.at += 10
    meters.task("kernel", 5)
    meters.stage("kernel", 5, 20)
    meter = meters.stages["kernel"]
    assert (meter.done, meter.total) == (5, 20)
    assert meter.rates()[0] == pytest.approx(0.1)


def test_the_time_in_which_workers_start_does_not_count(clock):
    meters = Meters(clock)
    meters.stage("features", 0, 10)
    clock.at += 30
    meters.workers(1, 2)
    clock.at += 2
    meters.task("features", 10)
    clock.at += 2
    meters.workers(2, 2)
    meters.task("features", 10)
    assert meters.stages["features"].rates()[0] == pytest.approx(0.5)
    assert meters.stages["features"].seconds == pytest.approx(34.0)


def test_parts_of_a_solve_may_fail_before_its_stage_begins(clock):
    meters = Meters(clock)
    meters.attempt_failed("solve")
    meters.stage("solve", 0, 1)
    assert meters.failed["solve"] == 1


def test_a_finished_stage_is_a_line(clock):
    def script(display):
        display.stage("features", 0, 8)
        for _ in range(8):
            clock.at += 0.3625
            display.task("features", 7_412_500)

    assert lines(clock, script) == "features          8/8  59.3 MB in 2.9 s\n"


def test_a_stage_that_was_finished_before_is_a_line_without_a_rate(clock):
    assert lines(clock, lambda display: display.stage("features", 8, 8)) == "features          8/8\n"


def test_without_a_terminal_a_line_is_printed_every_few_seconds_with_all_facts(clock):
    def script(display):
        display.workers(3, 4)
        display.stage("features", 10, 100)
        for number in range(14):
            clock.at += 1
            display.task("features", 2_000_000)
            if number == 2:
                display.attempt_failed("features")

    printed = lines(clock, script).splitlines()
    assert printed == [
        "features       16/100  12.0 MB in 6.0 s, 1/s, 2.0 MB/s, 1 min 24 s left, 1 failed, 3 of 4 workers",
        "features       22/100  24.0 MB in 12.0 s, 1/s, 2.0 MB/s, 1 min 18 s left, 1 failed, 3 of 4 workers",
        # What was not printed yet when the display ends.
        "features       24/100  28.0 MB in 14.0 s, 1/s, 2.0 MB/s, 1 min 16 s left, 1 failed, 3 of 4 workers",
    ]


def test_stages_that_overlap_have_lines_of_their_own(clock):
    def script(display):
        display.stage("features", 0, 2)
        display.stage("kernel", 0, 2)
        for name in ("features", "kernel", "features", "kernel"):
            clock.at += 1
            display.task(name, 1000)

    assert lines(clock, script).splitlines() == [
        "features          2/2  2.0 kB in 3.0 s",
        "kernel            2/2  2.0 kB in 4.0 s",
    ]


def test_a_terminal_shows_a_bar_for_each_stage_with_all_facts(clock):
    def script(display):
        display.stage("features", 0, 4)
        display.stage("kernel", 0, 7)
        display.workers(2, 3)
        clock.at += 2
        display.task("features", 3_000_000)
        display.attempt_failed("kernel")
        display.note("kernel task [a] is tried again")

    drawn = lines(clock, script, force_terminal=True, color_system=None)
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn)
    assert "kernel task [a] is tried again" in last
    assert re.search(r"features\s+\S+.*1/4.*0\.5/s, 1\.5 MB/s, 6\.0 s left", last)
    assert re.search(r"kernel\s.*0/7.*1 failed", last)
    assert "2 of 3 workers" in last


def test_notes_cannot_move_the_cursor(clock):
    assert "\x1b[2J" not in lines(clock, lambda display: display.note("a\x1b[2Jb"))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (4e-11, "0.04 ns"),
        (530e-6, "530 us"),
        (0.000_999_6, "1 ms"),
        (0.0032, "3.2 ms"),
        (0.0123, "12 ms"),
        (0.0999, "0.1 s"),
        (59.94, "59.9 s"),
        (60.0, "1 min"),
        (59.97, "1 min"),
        (3599.4, "59 min 59 s"),
        (3599.9, "1 h"),
        (-3.0, "0 s"),
        (float("inf"), "for ever"),
        (3660.0, "1 h 1 min"),
        (172_800.0, "2 d"),
        (176_400.0, "2 d 1 h"),
        (1e9, "11,574 d 1 h"),
    ],
)
def test_durations_are_said_in_two_units(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (999_960, "1.0 MB"),
        (59_300_000, "59.3 MB"),
        (5e18, "5,000.0 PB"),
    ],
)
def test_bytes_are_said_in_powers_of_a_thousand(num_bytes, text):
    assert size(num_bytes) == text


def test_how_much_is_needed_is_never_said_too_low():
    assert [size(number, at_least=True) for number in (4.3e9, 4.300001e9, 11.7e6, 1)] == [
        "4.3 GB",
        "4.4 GB",
        "11.7 MB",
        "1 byte",
    ]


def status_of(stage, **fields):
    return RunStatus(
        url="run", name="run", run_id="1", state="running", stages=(stage,), epoch=1, owner="me", silent_seconds=1.0,
        solves={}, failures=(), **fields,
    )  # fmt: skip


def test_a_running_run_says_how_fast_it_is_and_when_that_was():
    stage = StageStatus(
        "kernel", 5, 10, tasks_per_second=2.0, bytes_per_second=4e6, seconds_left=2.5, failed_attempts=2
    )
    found = status_of(stage, workers_ready=3, workers_wanted=4, told_seconds=3.2)
    assert list(speed_lines(found)) == [
        "by what its driver said 3.2 s ago:",
        "  3 of 4 workers",
        "  kernel: 2/s, 4.0 MB/s, 2.5 s left, 2 failed",
    ]


def test_a_run_that_nobody_works_on_has_no_speed():
    assert list(speed_lines(status_of(StageStatus("kernel", 5, 10)))) == []
