"""The benchmark of queries on a tiny run, so that it cannot rot; times are never asserted."""

import json

from benchmarks import queries


def test_everything_is_measured_and_told(tmp_path, capsys):
    told = tmp_path / "told.json"
    options = [
        "--samples",
        "200",
        "--block-rows",
        "16",
        "--repeats",
        "2",
        "--folder",
        str(tmp_path),
        "--json",
        str(told),
    ]
    assert queries.main(options) == 0
    rows = json.loads(told.read_text())["rows"]
    assert [row["section"] for row in rows].count("from files") == 3
    assert len(rows) == 11
    assert all(row["ours"]["seconds"] and row["bare"]["seconds"] for row in rows)
    assert "a row, cold disk" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [told]
