"""Metrics of a run on a cluster, as Prometheus would fetch them from the agents of its nodes."""

import json
import subprocess
import sys

import pytest
from clusters import LocalCluster
from commands import TESTS

pytestmark = pytest.mark.slow

PROGRAM = """
import json, re, sys, urllib.request
import ray, golden, ntkpipe
from processes import wait_for

address, out = sys.argv[1:]
# A run borrows the connection, so that the numbers outlive it.
ray.init(address=address, log_to_driver=False)
run = ntkpipe.run(golden.config(resources={"executor": "ray", "address": address, "workers": 2}), out)
ports = {node["MetricsExportPort"] for node in ray.nodes() if node["Alive"]}

def scraped():
    text = ""
    for port in ports:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text += answer.read().decode()
    found = {}
    for name, tags, value in re.findall(r"^ray_(ntkpipe_\\w+)\\{(.*)\\} (\\S+)$", text, re.MULTILINE):
        stage = re.search(r'stage="([^"]*)"', tags)
        le = re.search(r'le="([^"]*)"', tags)
        key = " ".join([name, *([stage[1]] if stage else []), *([le[1]] if le else [])])
        found[key] = found.get(key, 0) + float(value)
    return found

def whole():
    try:
        found = scraped()
    except OSError:
        return None  # an agent of a busy machine may not answer in time
    committed = sum(value for name, value in found.items() if name.startswith("ntkpipe_tasks_committed_total"))
    # What an agent has not heard of by now comes with the next report.
    return found if committed >= sum(stage.total for stage in run.status().stages) else None

print("METRICS", json.dumps(wait_for(whole, pause=0.5)))
"""


def test_the_agents_of_a_cluster_tell_what_the_log_tells(tmp_path):
    run = tmp_path / "run"
    with LocalCluster(num_cpus=2, dashboard=False, environment={"RAY_metrics_report_interval_ms": "1000"}) as cluster:
        found = subprocess.run(
            [sys.executable, "-c", PROGRAM, cluster.address, str(run)],
            cwd=TESTS,
            env=cluster.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )
    assert found.returncode == 0, found.stderr
    metrics = json.loads(next(line for line in found.stdout.splitlines() if line.startswith("METRICS"))[8:])
    events = [json.loads(line) for file in (run / "events").rglob("*.jsonl") for line in file.read_text().splitlines()]
    commits = [event for event in events if event["event"] == "commit"]
    for stage in ("features", "kernel", "solve"):
        of_stage = [event for event in commits if event["stage"] == stage]
        assert metrics[f"ntkpipe_tasks_committed_total {stage}"] == len(of_stage)
        assert metrics[f"ntkpipe_bytes_written_total {stage}"] == sum(event["bytes"] for event in of_stage)
        assert metrics[f"ntkpipe_task_seconds_count {stage}"] == len(of_stage)
        assert metrics[f"ntkpipe_task_seconds_bucket {stage} +Inf"] == len(of_stage)
        # Agents know only in which bucket a task was, so that their sum of seconds is a rough one.
        quick = sum(event["seconds"] <= 1.0 for event in of_stage)
        assert metrics[f"ntkpipe_task_seconds_bucket {stage} 1.0"] == quick
    read = sum(event.get("bytes_read", 0) for event in commits)
    assert sum(value for name, value in metrics.items() if name.startswith("ntkpipe_bytes_read_total")) == read
    assert not [name for name in metrics if name.startswith("ntkpipe_attempts_failed_total")], "nothing has failed"
    assert 0 <= metrics["ntkpipe_workers_ready"] <= 2
    assert {event["event"] for event in events} >= {"start", "worker", "stage", "commit", "finish"}
