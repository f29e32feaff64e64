"""What deploy/README.md tells people to type exists, and its figures are those of the files."""

import re
import subprocess

import pytest
import typer

from deploy.files import DEPLOY, README, VERSION, launcher, manifest, ntkpipe_commands, snippets
from ntkpipe.configs.loading import load_config
from ntkpipe.pipeline.cli import app

COMMANDS = ntkpipe_commands()


@pytest.mark.parametrize("text", [text for _, text in snippets()])
def test_a_shell_can_read_every_block(text):
    found = subprocess.run(["sh", "-n"], input=text, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")


def test_scripts_can_be_read_by_any_shell():
    found = subprocess.run(
        ["sh", "-n", DEPLOY / "launcher" / "spot-notice.sh"], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stderr) == (0, "")


def test_blocks_have_names_once_and_none_is_in_another_language():
    names = [name for name, _ in snippets() if name]
    assert len(set(names)) == len(names)
    assert set(re.findall(r"^```(\w+)", README, re.MULTILINE)) == {"sh", "yaml"}


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_the_command_line_takes_every_command(arguments):
    group = typer.main.get_command(app)
    with group.make_context("ntkpipe", ["--"], resilient_parsing=True) as context:
        name, command, rest = group.resolve_command(context, list(arguments))
        command.make_context(name, rest, parent=context)


def test_a_command_that_does_not_exist_would_be_found():
    group = typer.main.get_command(app)
    with group.make_context("ntkpipe", ["--"], resilient_parsing=True) as context:
        name, command, rest = group.resolve_command(context, ["run", "x.yaml", "--our", "y"])
        with pytest.raises(Exception, match="No such option"):
            command.make_context(name, rest, parent=context)


def test_everything_that_jobs_need_is_shown():
    assert {arguments[0] for arguments in COMMANDS} >= {"run", "submit", "status", "logs", "stop", "resume"}


def test_the_configuration_is_one():
    assert load_config(str(DEPLOY / "run.yaml")).resources.executor == "ray"


def test_the_settings_of_the_workers_of_several_kinds_are_some():
    import yaml

    (block,) = re.findall(r"^```yaml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    document = yaml.safe_load((DEPLOY / "run.yaml").read_text()) | yaml.safe_load(block)
    assert len(load_config(document).resources.pools) == 2


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", README):
        path, _, anchor = target.partition("#")
        assert (DEPLOY / path).exists()
        if anchor:
            headings = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_files_that_are_named_exist():
    for path in re.findall(r"\bdeploy/[\w/.-]*\w", README):
        if not path.startswith("deploy/example"):
            assert (DEPLOY.parent / path).exists(), path


def test_versions_names_and_times_are_those_of_the_files():
    assert set(re.findall(r"ntkpipe[:-](\d+\.\d+\.\d+)", README)) == {VERSION}
    cluster, job = manifest("raycluster.yaml"), manifest("rayjob.yaml")["spec"]
    assert f"service/{cluster['metadata']['name']}-head-svc" in README
    assert f"get secret {cluster['metadata']['name']} " in README
    assert cluster["spec"]["autoscalerOptions"]["idleTimeoutSeconds"] == 300
    assert (job["ttlSecondsAfterFinished"], job["activeDeadlineSeconds"]) == (300, 86400)
    assert launcher("aws.yaml")["idle_timeout_minutes"] == 5
    bucket = re.search(r"--out (s3://\S+)", job["entrypoint"]).group(1)
    assert bucket in README
