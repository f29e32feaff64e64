"""Secrets do not leave the process: forms and variables that are redacted, configurations that are refused, whole jobs."""

import json
import os
import pickle
import subprocess
import time
from pathlib import Path

import golden
import pytest
from commands import COMMAND, TESTS
from processes import children
from servers.s3 import ACCESS_KEY, SECRET_KEY

import ntkpipe
from ntkpipe.configs.errors import ConfigError, StorageError
from ntkpipe.configs.loading import load_config
from ntkpipe.configs.secrets import redacted, redacted_values, secret_in
from ntkpipe.pipeline.events import EventLog
from ntkpipe.pipeline.executors.base import TaskError
from ntkpipe.storage.records import Failure
from ntkpipe.storage.stores.errors import storage_errors
from ntkpipe.storage.stores.local import LocalRunStore

SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAZZTESTTESTTEST42",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYnotarealkey",
    "AWS_SESSION_TOKEN": "IQoJb3JpZ2luX2VjEOr//////////wEaCXVzLWVhc3QtMSJHMEUCIQ==",
    "HF_TOKEN": "hf_notARealTokenButLongEnough0123456",
    "PGPASSWORD": 'it\'s "quoted" \\ here',
    "AZURE_STORAGE_SAS": "sv=2024-01-01&ss=b&sig=Ab%2Bnotreal%3D",
    "MY_SERVICE_CREDENTIALS": "user-and-password",
}
"""None of them is real."""

ALL = tuple(SECRETS.values())

FORMS = [
    ("s3://key:pass%40word@bucket/run", "pass%40word", "a password in a URL"),
    ("postgresql+psycopg://u:p@ss@host:5432/db failed", "p@ss", "a password in a URL"),
    ("cannot open https://ghp_abcdef@github.com/x", "ghp_abcdef", "a user name or token in a URL"),
    ("https://b.s3/x?X-Amz-Signature=0a1b2c&part=1", "0a1b2c", "a presigned URL"),
    ("https://b.s3/x?X-Amz-Credential=ABC%2F2024&part=1", "ABC%2F2024", "a presigned URL"),
    ("{'X-Amz-Security-Token': 'FwoGZXIvYXdz'}", "FwoGZXIvYXdz", "a presigned URL"),
    ("https://g/x?X-Goog-Signature=0a1b2c", "0a1b2c", "a presigned URL"),
    ("https://a.blob/x?sv=1&sig=q%3D&se=2", "q%3D", "a signed URL"),
    ("Authorization: Basic dXNlcjpwYXNz\r\nHost: x", "dXNlcjpwYXNz", "an authorization header"),
    ("{'Authorization': b'AWS4-HMAC-SHA256 Credential=x/y, Signature=0a1b2c'}", "0a1b2c", "an authorization header"),
    ("sent Bearer abc.def-ghi to it", "abc.def-ghi", "a bearer token"),
    ("key AKIAABCDEFGHIJKLMNOP is unknown", "AKIAABCDEFGHIJKLMNOP", "an AWS access key"),
    ("-----BEGIN PRIVATE KEY-----\nMIIEvQ\n-----END PRIVATE KEY-----\nok", "MIIEvQ", "a PEM block"),
    ("'-----BEGIN RSA PRIVATE KEY-----\\nMIIEvQ\\nthe end is cut", "MIIEvQ", "a PEM block"),
    ("secret_access_key='abc/def+ghi'", "abc/def+ghi", "a password, key or token"),
    ('{"client_secret": "abcdefgh"}', "abcdefgh", "a password, key or token"),
    ("AccountName=me;AccountKey=abcdefgh==;x", "abcdefgh", "a password, key or token"),
]

HARMLESS = [
    "s3://bucket/runs/my-run",
    "abfs://container@account.dfs.core.windows.net/runs",
    "http://localhost:8080/kernels/ntk@seed-1",
    "kernel ntk@seed-1, position 4: expected 5",
    "num_token=12345678, max_tokens: 100000000",
    "Check resources.address, and RAY_AUTH_TOKEN for a cluster with authentication.",
    "data.splits.train: design='orthogonal-design'",
    "",
]


@pytest.fixture
def variables(monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def hold_none(text, secrets=ALL):
    assert [secret for secret in secrets if secret in text] == []


@pytest.mark.parametrize(("text", "secret", "what"), FORMS)
def test_well_known_forms_are_redacted_once_and_refused(text, secret, what):
    found = redacted(text)
    assert secret not in found
    assert "<redacted>" in found
    assert redacted(found) == found
    assert secret_in(text) == what


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_texts_stay_as_they_are(text):
    assert redacted(text) == text
    assert secret_in(text) is None


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("write", ["{}", "<{}>", "x={}&y", "{0}{0}"])
def test_values_of_variables_are_replaced_by_their_names(variables, name, write):
    found = redacted(write.format(SECRETS[name]))
    assert SECRETS[name] not in found
    assert f"<redacted:{name}>" in found
    assert redacted(found) == found


@pytest.mark.parametrize("form", [repr, json.dumps, lambda text: repr(repr(text)), lambda text: repr([KeyError(text)])])
def test_values_that_were_quoted_are_found(variables, form):
    assert "quoted" not in redacted(form(SECRETS["PGPASSWORD"]))


def test_values_in_urls_are_found(variables):
    assert redacted("?t=wJalrXUtnFEMI%2FK7MDENG%2BbPxRfiCYnotarealkey&") == "?t=<redacted:AWS_SECRET_ACCESS_KEY>&"


def test_what_is_left_of_a_value_that_was_cut_short_is_found(variables):
    assert redacted("found 'wJalrXUtnFEMI/K7MDEN...'") == "found '<redacted:AWS_SECRET_ACCESS_KEY>...'"


def test_a_secret_that_holds_another_one_is_replaced_as_a_whole(monkeypatch):
    monkeypatch.setenv("ONE_TOKEN", "abcdefgh")
    monkeypatch.setenv("OTHER_TOKEN", "abcdefgh-0123")
    assert redacted("abcdefgh-0123 abcdefgh") == "<redacted:OTHER_TOKEN> <redacted:ONE_TOKEN>"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SOME_KEY", "short"),
        ("SOME_TOKEN", "1234567890"),
        ("GOOGLE_APPLICATION_CREDENTIALS", os.__file__),
        ("TOKENIZERS_PARALLELISM", "whatever"),
        ("KEYBOARD", "whatever"),
        ("PWD", "/a/folder/that/is/not"),
        ("PATH", "/usr/bin:/bin"),
    ],
)
def test_variables_that_hold_no_secrets_are_left_alone(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert redacted(f"found {value}") == f"found {value}"


def test_errors_records_and_events_redact_what_they_are_given(variables, tmp_path):
    text = "endpoint https://u:hunter2@h refused " + " ".join(SECRETS.values())
    error = StorageError(text)
    hold_none(str(error))
    hold_none(pickle.dumps(error).decode("latin1"), ["hunter2"])
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    hold_none(TaskError("worker-lost", text).message)
    hold_none(Failure(stage="s", task="t", epoch=1, attempt=1, kind="k", message=text).encode().decode())
    log = EventLog(LocalRunStore(tmp_path), 1)
    log.add("failure", message=text, tasks=[text], numbers=[1, None])
    log.flush()
    (written,) = tmp_path.rglob("*.jsonl")
    hold_none(written.read_text(), [*SECRETS.values(), "hunter2"])
    assert json.loads(written.read_text())["numbers"] == [1, None]


def test_values_of_all_kinds_are_redacted_inside(variables):
    secret = SECRETS["HF_TOKEN"]
    found = redacted_values({secret: [secret, (secret, 1)], "x": None})
    assert found == {"<redacted:HF_TOKEN>": ["<redacted:HF_TOKEN>", ["<redacted:HF_TOKEN>", 1]], "x": None}


def configuration(options):
    return golden.config(model={"target": "golden:build_model", "options": options})


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"token": SECRETS["HF_TOKEN"]}, "model.options.token holds the value of the environment variable HF_TOKEN"),
        ({"a": {"b": [1, SECRETS["MY_SERVICE_CREDENTIALS"]]}}, "model.options.a.b.1 holds"),
        ({"url": f"s3://x?{SECRETS['AWS_SECRET_ACCESS_KEY']}"}, "variable AWS_SECRET_ACCESS_KEY"),
        ({SECRETS["HF_TOKEN"]: 1}, "a key of model.options holds"),
        ({"db": "postgresql://u:hunter2@h/x"}, "model.options.db holds a password in a URL"),
        ({"file": "https://b.s3/x?X-Amz-Signature=hunter2"}, "model.options.file holds a presigned URL"),
    ],
)
def test_a_configuration_that_would_store_a_secret_is_refused_without_repeating_it(variables, options, place):
    with pytest.raises(ConfigError) as caught:
        load_config(configuration(options))
    assert place in caught.value.message
    assert "stored in run.json" in caught.value.message
    hold_none(caught.value.message, [*SECRETS.values(), "hunter2"])


def test_secrets_are_refused_wherever_a_configuration_comes_from(variables, tmp_path):
    override = [f"model.options.token={SECRETS['HF_TOKEN']}"]
    with pytest.raises(ConfigError, match="HF_TOKEN"):
        load_config(golden.config(), override)
    with pytest.raises(ConfigError, match="HF_TOKEN"):
        load_config(load_config(golden.config()), override)
    stored = load_config(configuration({"token": SECRETS["HF_TOKEN"]}), stored=True)
    assert stored.model.options == {"token": SECRETS["HF_TOKEN"]}
    with pytest.raises(ConfigError, match="HF_TOKEN"):
        load_config(stored)
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(configuration({"token": SECRETS["HF_TOKEN"]})))
    with pytest.raises(ConfigError, match="HF_TOKEN"):
        load_config(file)
    arrays = golden.config(data={"splits": {"train": {"kind": "arrays", "inputs": "https://u:hunter2@h/x.npy"}}})
    with pytest.raises(ConfigError, match=r"data\.splits\.train\.inputs holds a password in a URL"):
        load_config(arrays)


def test_a_short_value_of_a_variable_counts_only_as_a_whole(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "features")
    load_config(configuration({"layer": "features.0"}))
    with pytest.raises(ConfigError, match="SOME_KEY"):
        load_config(configuration({"layer": "features"}))


def test_messages_are_cut_short_after_secrets_were_taken_out():
    name = f"{'x' * 50} https://user:{'hunter2' * 3}@host"
    with pytest.raises(ConfigError) as caught:
        load_config(golden.config(name=name))
    assert "hunter2" not in caught.value.message
    text = f"{'x' * 270} https://user:{'hunter2' * 3}@host refused"
    for kind in (ConnectionError, ArithmeticError):
        with pytest.raises(StorageError) as caught, storage_errors("s3://bucket/run"):
            raise kind(text)
        assert "hunter2" not in caught.value.message


def run_command(folder, document, *arguments, **environment):
    path = folder / "job.yaml"
    path.write_text(json.dumps(document))
    return subprocess.run(
        [*COMMAND, "run", str(path), "--out", str(folder / "run"), *arguments],
        cwd=TESTS,
        env=os.environ | SECRETS | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def assert_nothing_leaked(folder, *texts, secrets=ALL):
    contents = [file.read_bytes() for file in folder.rglob("*") if file.is_file()]
    # Lines are wrapped where they are printed.
    texts = [*texts, *("".join(text.split()) for text in texts)]
    for secret in secrets:
        for form in (secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], json.dumps(repr(secret)[1:-1])[1:-1]):
            assert not any(form.encode() in content for content in contents)
            assert not any(form in text for text in texts)


def test_a_model_that_fails_with_the_whole_environment_leaves_no_secret_anywhere(tmp_path):
    done = run_command(tmp_path, golden.config(model={"target": "leaking:build_model"}))
    assert done.returncode == 1, done.stderr
    assert "<redacted:AWS_SECRET_ACCESS_KEY>" in done.stderr
    records = list((tmp_path / "run" / "failed").rglob("*.json"))
    assert records
    assert all("<redacted:HF_TOKEN>" in file.read_text() for file in records)
    assert "<redacted:HF_TOKEN>" in next((tmp_path / "run" / "events").rglob("*.jsonl")).read_text()
    assert_nothing_leaked(tmp_path, done.stdout, done.stderr)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"target": "leaking:build_nothing"}},
        {"data": {"splits": {"train": {"kind": "python", "target": "leaking:load_nothing"}}}},
        {"data": {"splits": {"train": {"kind": "python", "target": "leaking:Unreadable"}}}},
    ],
    ids=["model", "samples", "items"],
)
@pytest.mark.slow
def test_sources_that_fail_with_the_whole_environment_leave_no_secret_anywhere(changes, tmp_path):
    done = run_command(tmp_path, golden.config(**changes))
    assert done.returncode == 2, done.stderr
    assert "<redacted:AWS_SECRET_ACCESS_KEY>" in done.stderr
    assert_nothing_leaked(tmp_path, done.stdout, done.stderr)


@pytest.mark.slow
def test_an_error_that_nobody_expected_shows_its_traceback_without_secrets(tmp_path):
    program = (
        "import ntkpipe.pipeline.run, leaking\n"
        "def fail(*_, **__): raise ZeroDivisionError(leaking.everything())\n"
        "ntkpipe.pipeline.run.run = fail\n"
        "from ntkpipe.pipeline.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [COMMAND[0], "-c", program, "run", "digits"],
        cwd=TESTS, env=os.environ | SECRETS, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert "Traceback" in done.stderr
    assert_nothing_leaked(tmp_path, done.stdout, done.stderr)


@pytest.mark.slow
def test_an_endpoint_with_a_password_that_refuses_is_reported_without_it(tmp_path):
    pytest.importorskip("s3fs")
    environment = {"AWS_ENDPOINT_URL": "http://user:hunter2hunter@127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
    done = run_command(tmp_path, golden.config(), "--out", "s3://bucket/run", **environment)
    assert done.returncode in (1, 2), done.stderr
    assert "s3://bucket/run" in done.stderr
    assert_nothing_leaked(tmp_path, done.stdout, done.stderr, secrets=[*SECRETS.values(), "hunter2hunter"])


def descendants(process):
    found = children(process)
    return found + [inner for child in found for inner in descendants(child)]


@pytest.mark.slow
def test_workers_on_ray_leave_no_secret_in_the_run_in_ray_s_files_or_on_command_lines(tmp_path, short_folder):
    """Ray's token must reach its processes, but not by their command lines, which everybody can read."""
    document = golden.config(
        model={"target": "leaking:build_model"}, resources={"executor": "ray", "workers": 1, "max_attempts": 2}
    )
    (tmp_path / "job.yaml").write_text(json.dumps(document))
    secrets = SECRETS | {"RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
    scratch = short_folder
    seen, written = set(), set()
    with (tmp_path / "output").open("wb") as output:
        process = subprocess.Popen(
            [*COMMAND, "run", str(tmp_path / "job.yaml"), "--out", str(tmp_path / "run")],
            cwd=TESTS,
            env=os.environ | secrets | {"RAY_AUTH_MODE": "token", "TMPDIR": str(scratch)},
            stdout=output,
            stderr=output,
        )
        while process.poll() is None:
            for child in descendants(process.pid):
                try:
                    with open(f"/proc/{child}/cmdline", "rb") as file:
                        seen.add(file.read())
                except OSError:
                    continue
            # Ray takes away its own folder in the end: what is gone meanwhile is passed over, files and folders alike.
            for file in (Path(folder) / name for folder, _, names in os.walk(scratch) for name in names):
                try:
                    if file.is_file():
                        content = file.read_bytes()
                        written |= {(name, file.name) for name, value in secrets.items() if value.encode() in content}
                except OSError:
                    continue
            time.sleep(0.2)
    assert process.returncode == 1, (tmp_path / "output").read_text()
    assert any(b"raylet" in command for command in seen)
    assert [name for name, value in secrets.items() if any(value.encode() in command for command in seen)] == []
    assert written == set()
    assert "<redacted:AWS_SECRET_ACCESS_KEY>" in (tmp_path / "output").read_text()
    assert_nothing_leaked(tmp_path, secrets=secrets.values())


@pytest.mark.slow
@pytest.mark.parametrize("client", ["s3", "s3+obstore"])
def test_a_run_in_an_object_store_holds_none_of_its_credentials(s3, client):
    url = s3.new_url(client)
    ntkpipe.run(golden.config(), url)
    service, folder = s3.client(), url.partition("://")[2].partition("/")
    keys = [item["Key"] for item in service.list_objects_v2(Bucket=folder[0], Prefix=folder[2])["Contents"]]
    contents = [service.get_object(Bucket=folder[0], Key=key)["Body"].read() for key in keys]
    assert any(key.endswith("run.json") for key in keys)
    for secret in (ACCESS_KEY, SECRET_KEY, s3.endpoint):
        assert not any(secret.encode() in content for content in contents)
