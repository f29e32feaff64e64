"""What serves, run as deploy/ says: the pod's own conditions, and Ray Serve, with the same answers as `ntkpipe serve`."""

import os
import shlex
import shutil

import golden
import httpx
import pytest
import yaml
from ports import free_ports
from processes import wait_for
from serving import serving

import ntkpipe
from deploy.files import DEPLOY, lines, snippet
from deploy.pods import can_have_one, run_as_pod
from deploy.shells import Background, environment
from deploy.test_serve_manifests import CONTAINER, POD

pytestmark = pytest.mark.slow

TOKEN = "a-token-of-these-tests"
ASKED = """
import json, sys, time, urllib.error, urllib.request

def get(path, **headers):
    return urllib.request.urlopen(urllib.request.Request("http://127.0.0.1:8765" + path, headers=headers))

for _ in range(1800):
    try:
        if get("/healthz").status == 200:
            break
    except OSError:
        time.sleep(0.1)
else:
    sys.exit("the service has not answered for minutes")
try:
    get("/v1/runs")
except urllib.error.HTTPError as error:
    refused = error.code
found = get("/v1/runs/golden/kernels/pntk?rows=0", Authorization="Bearer " + sys.argv[1])
print(refused, found.status, json.load(found)["values"][0])
"""
HEADERS = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    ntkpipe.run(golden.config(kernels=[{"kind": "pntk"}], solve=[]), folder / "golden")
    return folder


def is_up(url):
    try:
        return httpx.get(f"{url}/healthz").status_code == 200
    except httpx.TransportError:
        return False


def questions(url):
    """What is asked of a service, as (path, headers)."""
    kernel = "/v1/runs/golden/kernels/pntk?rows=0:3&format=npy"
    found = httpx.get(f"{url}{kernel}", headers=HEADERS, timeout=60)
    assert found.status_code == 200
    paths = [
        "/v1/runs",
        "/v1/runs/golden",
        kernel,
        "/v1/runs/golden/splits/train/ids",
        "/v1/runs/golden/kernels/none",
        "/",
    ]
    return [(path, HEADERS) for path in paths] + [
        (kernel, {}),
        (kernel, HEADERS | {"if-none-match": found.headers["etag"]}),
    ]


def test_ray_serve_gives_the_answers_of_the_plain_service(root, short_folder):
    (port,) = free_ports(1)
    document = yaml.safe_load((DEPLOY / "rayserve" / "serve.yaml").read_text())
    document["http_options"]["port"] = port
    (application,) = document["applications"]
    application["args"]["root"] = str(root)
    config = short_folder / "serve.yaml"
    config.write_text(yaml.safe_dump(document))
    (command,) = [line for line in lines(snippet("rayserve")) if line.startswith("serve run")]
    command = command.replace("deploy/rayserve/serve.yaml", str(config))
    variables = environment(
        short_folder,
        NTKPIPE_TOKEN=TOKEN,
        RAY_TMPDIR=str(short_folder),
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN=os.environ["RAY_AUTH_TOKEN"],
        OMP_NUM_THREADS="1",
    )
    with (
        serving(root, token=TOKEN) as plain,
        Background(f"exec {command}", variables, short_folder / "serve.log", "Submitted deploy config"),
        httpx.Client(timeout=60) as client,
    ):
        wait_for(lambda: is_up(f"http://127.0.0.1:{port}"), 120, 0.2)
        for path, headers in questions(plain.url):
            one, other = (
                client.get(f"{url}{path}", headers=headers) for url in (plain.url, f"http://127.0.0.1:{port}")
            )
            assert (other.status_code, other.content) == (one.status_code, one.content), path
            assert other.headers.get("etag") == one.headers.get("etag"), path
            assert other.headers["content-security-policy"]
        run = ntkpipe.connect(f"http://127.0.0.1:{port}/v1/runs/golden", TOKEN)
        assert run.kernel("pntk")[:, :].tolist() == golden.PNTK
        del run


@pytest.mark.skipif(not can_have_one(), reason="a pod's conditions need Linux and root")
def test_the_pod_serves_as_its_user_with_a_root_that_cannot_be_written_and_ends_in_time(root, short_folder):
    security = POD["securityContext"]
    user, inside = security["runAsUser"], short_folder / "tmp"
    shutil.copytree(root, inside / "runs")
    for path in (inside / "runs", *(inside / "runs").rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o444)
    (inside / "token").write_text(TOKEN)
    (inside / "token").chmod(0o440)
    os.chown(inside / "token", 0, security["fsGroup"])
    inside.chmod(0o1777)
    places = {"s3://my-bucket/runs": "/tmp/runs", "--token-file=/etc/ntkpipe/token": "--token-file=/tmp/token"}
    words = [places.pop(word, word) for word in CONTAINER["args"]]
    assert not places
    (inside / "asked.py").write_text(ASKED)
    (inside / "pod.sh").write_text(
        "set -eu\n"
        "grep -q '^[^ ]* / [^ ]* ro[, ]' /proc/mounts\n"
        f"test $(id -u) -eq {user}\n"
        f"{shlex.join(words)} >served.log 2>&1 &\n"
        f"python asked.py {TOKEN}\n"
        "kill -TERM $!\n"
        "wait $!\n"
        "grep 'serving /tmp/runs on http://0.0.0.0:8765' served.log\n"
    )
    variables = {entry["name"]: entry["value"] for entry in CONTAINER["env"]}
    said, code = run_as_pod(inside, user, security["runAsGroup"], variables, 1 << 20)
    assert code == 0, f"{said}\n{(inside / 'served.log').read_text()}"
    assert "401 200 [10.0, 18.0, 7.0, 2.0]" in said
