"""What the service answers, asked inside the process: routes, formats, ETags, problems."""

import io
import json
import shutil

import golden
import numpy as np
import pyarrow
import pytest
from contracts.readers import IDS, RUN, make_runs
from serving import ask

import ntkpipe
from ntkpipe.pipeline.server.app import create_app
from ntkpipe.pipeline.server.settings import ServerSettings

NAME = "a%20run,%2050%25%20%C3%BC"
BASE = f"/v1/runs/{NAME}"
PROBLEM = "application/problem+json"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    make_runs(folder)
    return folder


@pytest.fixture(scope="module")
def app(root):
    return create_app(ServerSettings(root=str(root), access_log=False))


def npy(answer):
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-npy"
    return np.load(io.BytesIO(answer.content), allow_pickle=False)


def problem(answer, status, kind):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    found = answer.json()
    assert (found["status"], found["kind"]) == (status, kind)
    assert found["detail"]
    return found


def test_runs_are_listed_by_name_with_their_progress_page_by_page(app):
    found = ask(app, "/v1/runs").json()
    assert [item["run"] for item in found["runs"]] == sorted([RUN, "half", "damaged", "members", "plain"])
    assert found["next"] is None
    states = {item["run"]: item["state"] for item in found["runs"]}
    assert (states[RUN], states["half"]) == ("finished", "interrupted")
    first = ask(app, "/v1/runs?limit=2").json()
    assert len(first["runs"]) == 2
    rest = ask(app, "/v1/runs", params={"after": first["next"]}).json()
    assert [item["run"] for item in first["runs"] + rest["runs"]] == [item["run"] for item in found["runs"]]
    item = next(item for item in found["runs"] if item["run"] == RUN)
    assert item["num_samples"] == {"train": 4, "test": 4}
    assert "trntk0" in item["kernels"]


def test_a_run_tells_what_it_is_and_how_far_by_its_name_and_not_its_place(app, root):
    told = ask(app, BASE)
    assert told.json()["run"] == RUN
    assert told.json()["manifest"] == json.loads((root / RUN / "run.json").read_text())
    status = ask(app, f"{BASE}/status")
    assert status.json()["url"] == RUN
    assert status.headers["cache-control"] == "no-store"
    assert str(root) not in status.text


def test_a_root_that_is_a_run_is_served_under_its_own_name(root):
    app = create_app(ServerSettings(root=str(root / "half"), access_log=False))
    assert [item["run"] for item in ask(app, "/v1/runs").json()["runs"]] == ["half"]
    assert ask(app, "/v1/runs/half/status").json()["state"] == "interrupted"
    problem(ask(app, "/v1/runs/data.zarr"), 404, "not-found")
    found = problem(ask(app, "/v1/runs/half/kernels/nothing"), 404, "not-found")
    assert found["detail"].startswith("half: ")


def test_entries_come_as_npy_arrow_and_json_by_parameter_or_accept_header(app):
    path = f"{BASE}/kernels/pntk?rows=0:2&cols=1,3"
    expected = np.array(golden.PNTK, float)[:2][:, [1, 3]]
    np.testing.assert_allclose(npy(ask(app, f"{path}&format=npy")), expected, atol=1e-12)
    np.testing.assert_allclose(npy(ask(app, path, headers={"accept": "application/x-npy"})), expected, atol=1e-12)
    found = ask(app, path).json()
    np.testing.assert_allclose(found["values"], expected, atol=1e-12)
    assert (found["shape"], found["dtype"]) == ([2, 2], "float64")
    assert (found["row_ids"], found["column_ids"]) == (IDS[:2], [IDS[1], IDS[3]])
    table = pyarrow.ipc.open_stream(ask(app, f"{path}&format=arrow").content).read_all()
    assert table.column("sample").to_pylist() == IDS[:2]
    np.testing.assert_allclose(table.column(IDS[3]).to_numpy(), expected[:, 1], atol=1e-12)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/x-npy;q=0, application/json", "application/json"),
        ("application/json;q=0.1, application/x-npy;q=0.9", "application/x-npy"),
        ("application/x-npy; q=0.5, application/json", "application/json"),
        ("application/x-npy;q=much", "application/json"),
        ("text/html, */*", "application/json"),
    ],
)
def test_of_formats_that_are_accepted_the_most_welcome_one_comes(app, accept, kind):
    assert ask(app, f"{BASE}/kernels/pntk", headers={"accept": accept}).headers["content-type"] == kind


def test_a_parameter_that_is_given_twice_is_refused_by_name(app):
    found = problem(ask(app, f"{BASE}/kernels/pntk?rows=0&cols=1&r%6Fws=1"), 422, "config")
    assert "'rows' is given more than once" in found["detail"]


def test_a_request_about_another_run_than_goes_by_the_name_is_refused(app):
    run_id = ask(app, BASE).json()["manifest"]["run_id"]
    for path in ("", "/status", "/events", "/kernels/pntk?rows=0", "/splits/train/ids"):
        assert ask(app, f"{BASE}{path}", headers={"ntkpipe-run": run_id}).status_code == 200
        problem(ask(app, f"{BASE}{path}", headers={"ntkpipe-run": "another"}), 409, "run-mismatch")


def test_ids_of_any_characters_select_in_a_posted_list(app):
    path = f"{BASE}/kernels/pntk"
    found = npy(ask(app, path, "POST", json={"rows": IDS[::-1], "cols": [0, -1], "format": "npy"}))
    np.testing.assert_allclose(found, np.array(golden.PNTK, float)[::-1][:, [0, 3]], atol=1e-12)
    problem(ask(app, path, "POST", json={"rows": ["nobody"]}), 404, "not-found")
    problem(ask(app, path, "POST", json={"rows": [True]}), 422, "config")
    for bad in ({"k": "2"}, {"k": True}, {"label": False}, {"opposed": 1}):
        problem(ask(app, f"{path}/neighbors", "POST", json={"rows": [0], **bad}), 422, "config")
    problem(ask(app, path, "POST", json={"rows": [0, "x"]}), 422, "config")
    problem(ask(app, path, "POST", content=b"{", headers={"content-type": "application/json"}), 422, "config")


def test_samples_features_diagonals_and_outputs_are_those_of_the_run(app, root):
    assert ask(app, f"{BASE}/splits/train/ids?start=1&stop=3").json() == {"ids": IDS[1:3], "num_samples": 4}
    assert ask(app, f"{BASE}/splits/train/labels").json()["values"] == golden.LABELS
    assert ask(app, f"{BASE}/splits/train/outputs?rows=3,0").json()["values"] == [golden.OUTPUTS[3], golden.OUTPUTS[0]]
    problem(ask(app, "/v1/runs/plain/splits/train/labels"), 404, "not-found")
    problem(ask(app, f"{BASE}/splits/nothing/ids"), 404, "not-found")
    features = npy(ask(app, f"{BASE}/kernels/sketch/features?rows=1:3&format=npy"))
    assert features.shape == (2, 16)
    layers = npy(ask(app, f"{BASE}/kernels/layers/features", "POST", json={"rows": [2], "format": "npy"}))
    expected = ntkpipe.open_run(root / RUN).features["layers"][2:3]
    assert layers.tolist() == expected.tolist()
    diagonal = npy(ask(app, f"{BASE}/kernels/trntk0/diagonal?format=npy"))
    np.testing.assert_allclose(diagonal, np.diag(golden.TRNTK0), atol=1e-12)


def test_layers_transforms_and_errors_are_asked_for_by_name(app):
    found = npy(ask(app, f"{BASE}/kernels/trntk0?layers=fc1.*&transforms=cosine&format=npy"))
    np.testing.assert_allclose(np.diag(found)[:3], 1, atol=1e-12)
    components = golden.TRNTK0_COMPONENTS
    expected = np.array(components["fc1.weight"], float) + components["fc1.bias"]
    plain = npy(ask(app, f"{BASE}/kernels/trntk0?layers=fc1.weight,fc1.bias&format=npy"))
    np.testing.assert_allclose(plain, expected, atol=1e-12)
    assert not npy(ask(app, f"{BASE}/kernels/pntk/errors?format=npy")).any()
    assert npy(ask(app, f"{BASE}/kernels/sketch/errors?rows=0&format=npy")).shape == (1, 4)
    problem(ask(app, f"{BASE}/kernels/sketch/errors?transforms=cosine"), 422, "config")
    problem(ask(app, f"{BASE}/kernels/trntk0?transforms=bent"), 422, "config")


def test_neighbours_of_several_samples_are_ordered_by_their_values(app):
    path = f"{BASE}/kernels/trntk0/neighbors"
    found = ask(app, f"{path}?rows=0:2&k=2").json()["neighbors"]
    assert [item["sample"] for item in found] == IDS[:2]
    assert [(one["position"], one["value"], one["label"]) for one in found[0]["neighbors"]] == [(1, 30, 1), (2, 11, 1)]
    opposed = ask(app, path, "POST", json={"rows": [0], "k": 1, "opposed": True}).json()["neighbors"]
    assert opposed[0]["neighbors"][0]["position"] == 3
    of_class = ask(app, f"{path}?rows=0&split=test&k=4&label=0").json()["neighbors"][0]["neighbors"]
    assert [one["position"] for one in of_class] == [0, 3]
    problem(ask(app, f"{path}?k=2"), 422, "config")
    problem(ask(app, f"{BASE}/kernels/full/neighbors?rows=0"), 422, "config")


def test_spectra_solutions_and_attributions_add_up(app):
    spectrum = ask(app, f"{BASE}/kernels/trntk0/spectrum").json()
    values = np.linalg.eigvalsh(np.array(golden.TRNTK0, float))[::-1]
    np.testing.assert_allclose(spectrum["eigenvalues"], values, rtol=1e-9)
    assert ask(app, f"{BASE}/solutions/krr").json()["kernel"] == "trntk0"
    alpha = npy(ask(app, f"{BASE}/solutions/krr/coefficients?format=npy"))
    predictions = npy(ask(app, f"{BASE}/solutions/krr/predictions?split=test&format=npy"))
    np.testing.assert_allclose(predictions, np.array(golden.TRNTK0, float) @ alpha, atol=1e-9)
    parts = npy(ask(app, f"{BASE}/solutions/krr/attributions?split=test&rows=1:3&format=npy"))
    np.testing.assert_allclose(parts.sum(axis=1), predictions[1:3], atol=1e-9)
    one = npy(ask(app, f"{BASE}/solutions/krr/attributions", "POST", json={"rows": [1], "target": 0, "format": "npy"}))
    assert one.shape == (1, 4)
    summary = ask(app, f"{BASE}/solutions/krr/attributions/summary?split=test&sample=id:x1&k=2").json()
    assert summary["target"] == int(predictions[1].argmax())
    shares = sum(share["positive"] + share["negative"] for share in summary["by_class"])
    np.testing.assert_allclose(shares, summary["prediction"], atol=1e-9)
    problem(ask(app, f"{BASE}/solutions/krr/attributions/summary?sample=0:2"), 422, "config")
    problem(ask(app, f"{BASE}/solutions/nothing"), 404, "not-found")


def test_analyses_are_files_of_harmless_types(app):
    files = ask(app, f"{BASE}/analyses/fidelity").json()["files"]
    assert "summary.json" in files
    answer = ask(app, f"{BASE}/analyses/fidelity/summary.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()
    problem(ask(app, f"{BASE}/analyses/fidelity/..%2F..%2Frun.json"), 404, "not-found")
    problem(ask(app, f"{BASE}/analyses/nothing"), 404, "not-found")


def test_history_is_told_page_by_page(app):
    events = ask(app, f"{BASE}/events?limit=3").json()
    assert events["events"][0]["event"] == "start"
    assert events["next"] == 3
    assert ask(app, f"{BASE}/events?after=100000").json() == {"events": [], "next": 100000}
    answer = ask(app, f"{BASE}/timeline")
    timeline = answer.json()
    assert ask(app, f"{BASE}/timeline", headers={"if-none-match": answer.headers["etag"]}).status_code == 304
    assert {stage["stage"] for stage in timeline["stages"]} >= {"features", "kernel"}
    assert ask(app, f"{BASE}/failures").json() == {"failures": []}
    page = ask(app, f"{BASE}/receipts/kernel?limit=2").json()
    rest = ask(app, f"{BASE}/receipts/kernel", params={"after": page["next"]}).json()
    tasks = [item["task"] for item in page["receipts"] + rest["receipts"]]
    assert tasks == sorted(tasks)
    assert rest["next"] is None
    receipt = ask(app, f"{BASE}/receipts/kernel/{tasks[0]}").json()
    assert (receipt["task"], receipt["stage"]) == (tasks[0], "kernel")
    problem(ask(app, f"{BASE}/receipts/nothing"), 404, "not-found")
    problem(ask(app, f"{BASE}/receipts/kernel/nothing"), 404, "not-found")
    problem(ask(app, f"{BASE}/receipts/kernel/..%2F..%2Frun"), 404, "not-found")


def test_what_is_not_committed_is_a_conflict_that_names_blocks_or_nan(app):
    found = problem(ask(app, "/v1/runs/half/kernels/pntk?rows=0:4"), 409, "chunk-not-ready")
    assert found["blocks"] == ["train-train/000001-000000"]
    values = npy(ask(app, "/v1/runs/half/kernels/pntk?missing=nan&format=npy"))
    assert np.isnan(values[2:, :2]).all()
    assert np.isfinite(values[:2, :2]).all()
    assert ask(app, "/v1/runs/half/kernels/pntk?missing=nan").json()["values"][3][0] is None
    assert npy(ask(app, "/v1/runs/half/kernels/pntk?rows=0:2&cols=0:2&format=npy")).shape == (2, 2)
    problem(ask(app, "/v1/runs/half/solutions/krr"), 409, "chunk-not-ready")


def test_what_is_committed_later_is_there_when_it_is_asked_for_again(root, tmp_path):
    shutil.copytree(root / "half", tmp_path / "half")
    app = create_app(ServerSettings(root=str(tmp_path), access_log=False))
    path = "/v1/runs/half/kernels/pntk?format=npy"
    assert ask(app, path).status_code == 409
    hidden = ask(app, f"{path}&missing=nan")
    task = "receipts/kernel/train-train/000001-000000.json"
    shutil.copy(root / RUN / task, tmp_path / "half" / task)
    np.testing.assert_allclose(npy(ask(app, path)), golden.PNTK, atol=1e-12)
    again = ask(app, f"{path}&missing=nan", headers={"if-none-match": hidden.headers["etag"]})
    np.testing.assert_allclose(npy(again), golden.PNTK, atol=1e-12)


def test_damage_is_told_as_such_and_a_defect_tells_no_more_than_an_id(app, caplog, monkeypatch):
    problem(ask(app, "/v1/runs/damaged/kernels/pntk"), 500, "corrupt-chunk")

    def broken(*_, **__):
        raise RuntimeError("a secret place: /home/somebody")

    monkeypatch.setattr(app.service, "open", broken)
    answer = ask(app, BASE)
    found = problem(answer, 500, "error")
    assert "somebody" not in answer.text
    assert found["request"] in caplog.text
    assert "a secret place" in caplog.text


def test_an_etag_answers_304_without_reading_and_changes_with_the_format_and_the_selection(app):
    path = f"{BASE}/kernels/trntk0?format=npy"
    first = ask(app, path)
    assert first.headers["cache-control"] == "private, no-cache"
    etag = first.headers["etag"]
    assert ask(app, path).headers["etag"] == etag
    for known in (etag, f'"other", {etag}', f"W/{etag}"):
        same = ask(app, path, headers={"if-none-match": known})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
    others = [
        ask(app, f"{BASE}/kernels/trntk0?{query}").headers["etag"]
        for query in ("format=json", "format=npy&rows=0", "format=npy&cols=0", "format=npy&transforms=cosine")
    ]
    assert len({etag, *others}) == 5
    assert ask(app, path, headers={"if-none-match": others[0]}).status_code == 200
    posted = ask(app, f"{BASE}/kernels/trntk0", "POST", json={"format": "npy"}, headers={"if-none-match": etag})
    assert posted.status_code == 304
    manifest = ask(app, BASE)
    assert ask(app, BASE, headers={"if-none-match": manifest.headers["etag"]}).status_code == 304
    # Whoever has "any" answer is told what there is, which may be that there is none.
    assert ask(app, path, headers={"if-none-match": "*"}).status_code == 200
    problem(ask(app, "/v1/runs/half/kernels/pntk", headers={"if-none-match": "*"}), 409, "chunk-not-ready")


def test_an_answer_that_is_too_large_is_refused_with_the_limit_before_it_is_read(root):
    app = create_app(ServerSettings(root=str(root), max_cells=12, max_json_cells=6, access_log=False))
    found = problem(ask(app, f"{BASE}/kernels/trntk0?format=npy"), 413, "too-large")
    assert (found["limit"], found["asked"]) == (12, 16)
    found = problem(ask(app, f"{BASE}/kernels/trntk0?rows=0:2"), 413, "too-large")
    assert (found["limit"], found["asked"]) == (6, 8)
    assert npy(ask(app, f"{BASE}/kernels/trntk0?rows=0:3&format=npy")).shape == (3, 4)
    tight = create_app(ServerSettings(root=str(root), answer_bytes=1 << 20, access_log=False))
    tight.service.admission.take((1 << 20) - 100)
    busy = ask(tight, f"{BASE}/kernels/trntk0?format=npy")
    problem(busy, 503, "busy")
    assert busy.headers["retry-after"] == "1"


def test_unknown_parameters_methods_and_paths_are_refused_as_problems(app):
    problem(ask(app, f"{BASE}/kernels/trntk0?row=0"), 422, "config")
    problem(ask(app, f"{BASE}/kernels/trntk0", "POST", json={"row": [0]}), 422, "config")
    problem(ask(app, f"{BASE}/kernels/trntk0?format=xml"), 422, "config")
    problem(ask(app, "/v1/nothing"), 404, "not-found")
    problem(ask(app, "/docs"), 404, "not-found")
    refused = ask(app, f"{BASE}/kernels/trntk0", "DELETE")
    problem(refused, 405, "config")
    assert refused.headers["allow"] == "GET, HEAD, OPTIONS, POST"
    assert ask(app, f"{BASE}/kernels/trntk0", "OPTIONS").headers["allow"] == "GET, HEAD, OPTIONS, POST"
    head = ask(app, f"{BASE}/kernels/trntk0?format=npy", "HEAD")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(ask(app, f"{BASE}/kernels/trntk0?format=npy").content))


def test_figures_for_prometheus_name_routes_and_never_what_was_asked(app):
    ask(app, "/v1/runs/a-strange-name/kernels/another")
    text = ask(app, "/metrics").text
    assert 'route="/v1/runs/{run}/kernels/{kernel}"' in text
    assert "strange" not in text
    assert "ntkpipe_tile_cache_bytes" in text
    assert "ntkpipe_requests_in_flight 1.0" in text


@pytest.mark.parametrize("path", ["/", "/static/main.js", "/static/views/compare.js", "/static/style.css"])
def test_browsers_ask_whether_a_file_of_the_explorer_is_still_the_same_before_they_use_it(app, path):
    first = ask(app, path)
    assert (first.status_code, first.headers["cache-control"]) == (200, "no-cache")
    again = ask(app, path, headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.headers["cache-control"]) == (304, "no-cache")
    assert again.content == b""


def test_the_description_is_asked_for_again_after_an_update(app):
    path = "/v1/openapi.json"
    first = ask(app, path)
    assert (first.headers["content-type"], first.headers["cache-control"]) == ("application/json", "private, no-cache")
    assert ask(app, path, headers={"if-none-match": first.headers["etag"]}).status_code == 304


def test_every_route_is_described_with_its_problems_and_no_page_is_needed_for_that(app):
    described = ask(app, "/v1/openapi.json").json()
    assert len(described["paths"]) > 25
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            assert operation.get("summary"), (method, path)
            assert "application/problem+json" in operation["responses"]["404"]["content"], (method, path)
            assert "HTTPValidationError" not in json.dumps(operation), (method, path)
