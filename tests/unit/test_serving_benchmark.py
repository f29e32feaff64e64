"""The load test of the service on a tiny run, so that it cannot rot; times are never asserted."""

import json
import shutil
import sys

import httpx
import pytest
from benchmarks import serving as benchmark

FIGURES = (1000, 2e6, 5e6, 1, 2, 3, 4, 50, 500.0, 9000.0, 20000.0)
"""Requests, microseconds, bytes, four kinds of socket errors, statuses above 399, and latencies."""


def test_who_is_told_to_come_back_is_no_error():
    endpoint = benchmark.Endpoint("a", "/a", {})
    found = benchmark.load_of(endpoint, 8, "service", FIGURES, 40)
    assert (found.requests_per_second, found.megabytes_per_second) == (500, 2.5)
    assert (found.p50_ms, found.p99_ms, found.max_ms) == (0.5, 9, 20)
    assert (found.busy, found.errors) == (40, 1 + 2 + 3 + 4 + 10)
    floor = benchmark.load_of(endpoint, 8, "floor", (2000, *FIGURES[1:]), 0)
    (grid,) = benchmark.grids([found, floor], "run")
    assert grid.rows == (("a", "500", "0.50", "2.5", "0.50 ms", "9.00 ms", "0.50 ms", "9.00 ms", "40", "20"),)


def test_the_bare_server_sends_the_same_bytes():
    answers = [
        {
            "target": "/a%20b?rows=0:2",
            "status": 200,
            "headers": [("etag", '"1"'), ("content-length", "3")],
            "content": b"\0ab",
        },
        {"target": "/healthz", "status": 200, "headers": [("content-length", "0")], "content": b""},
    ]
    with benchmark.bare(answers) as url:
        for answer in answers:
            found = httpx.get(f"{url}{answer['target']}")
            assert (found.status_code, found.content) == (answer["status"], answer["content"])
            assert set(answer["headers"]) <= set(found.headers.multi_items())


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is a package of Debian")
def test_a_service_under_load_makes_no_errors(tmp_path, monkeypatch, capsys):
    options = ["--samples", "40", "--seconds", "1", "--connections", "2", "--only", "np", "--markdown"]
    monkeypatch.setattr(sys, "argv", ["serving.py", *options, "--json", str(tmp_path / "loads.json")])
    assert benchmark.main() == 0
    loads = json.loads((tmp_path / "loads.json").read_text())
    assert {load["errors"] for load in loads} == {0}
    assert {(load["connections"], load["server"]) for load in loads} == {(2, "service"), (2, "floor")}
    assert len({load["endpoint"] for load in loads}) == 3
    assert "| one row as npy |" in capsys.readouterr().out
