"""What is in deploy/: valid by whatever can judge it here, and in step with the code.

What no test here has run is said in deploy/README.md.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from stream.cli import commands
from stream.config.settings import PREFIX, is_secret, setting_names
from tests.ops.prometheus import ROOT
from tests.ops.wheels import program

DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "Dockerfile"

SETTINGS = {PREFIX + name.upper() for name in setting_names()}
SETTINGS |= {PREFIX + name.upper() + "_FILE" for name in setting_names() if is_secret(name)} | {PREFIX + "CONFIG"}


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def resources(folder: str) -> list[dict[str, Any]]:
    """What a kustomization lists, those of other folders aside."""
    (found,) = documents(KUBERNETES / folder / "kustomization.yaml")
    paths = [KUBERNETES / folder / name for name in found["resources"]]
    return [document for path in paths if path.is_file() for document in documents(path)]


def unit(path: Path) -> dict[str, list[str]]:
    """key -> values, of all sections."""
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


# ---- in step with the code --------------------------------------------------------------------------------------


def test_every_setting_that_is_named_exists() -> None:
    files = [path for path in DEPLOY.rglob("*") if path.is_file()] + [COMPOSE, DOCKERFILE]
    for path in files:
        named = set(re.findall(r"\bSENTSTREAM_[A-Z_]+\b", path.read_text()))
        assert named <= SETTINGS, path


def test_every_command_that_is_named_exists() -> None:
    known = {entry.name for entry in commands.COMMANDS}
    for path in UNITS:
        (line,) = unit(path)["ExecStart"]
        program_, name, *_ = shlex.split(line)
        assert program_ == "/opt/sentstream/bin/sentstream"
        assert name in known
    services = documents(COMPOSE)[0]["services"].values()
    ours = [it for it in services if it["image"].startswith("sentstream") and "entrypoint" not in it]
    assert len(ours) == 5
    assert {service["command"][0] for service in ours} <= known
    pods = [it["spec"]["template"]["spec"] for it in [*resources("base"), *resources("embedded")] if has_pod(it)]
    assert {pod["containers"][0]["args"][0] for pod in pods} == {"read", "work", "reconcile", "serve", "run"}


def has_pod(resource: dict[str, Any]) -> bool:
    return resource["kind"] in ("Deployment", "StatefulSet")


def test_image_holds_what_it_copies() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE.read_text(), re.MULTILINE)
    names = {name for line in copied for name in line.split()[:-1]}
    kept = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    assert names == kept
    assert all((ROOT / name).exists() for name in names)


def test_constraints_of_the_image_are_those_of_the_lock(tmp_path: Path) -> None:
    """The very sed of the Dockerfile."""
    (line,) = re.findall(r"^RUN (sed .+) > constraints.txt", DOCKERFILE.read_text(), re.MULTILINE)
    found = subprocess.run(shlex.split(line), cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = [line for line in found.splitlines() if line and not line.lstrip().startswith("#")]
    assert all(re.match(r"[\w.-]+==\S+( ; .+)?$", line) for line in lines)
    assert any(line.startswith("psycopg==") for line in lines)


# ---- judged by others -------------------------------------------------------------------------------------------


@pytest.mark.manifests
def test_compose_file_is_valid_by_its_schema() -> None:
    files = metadata.files("check-jsonschema") or []
    (schema,) = [file for file in files if file.name == "compose-spec.json"]
    jsonschema.validate(documents(COMPOSE)[0], json.loads(schema.read_text()))


@pytest.mark.manifests
@pytest.mark.timeout(300)  # the program may have to be fetched
def test_compose_itself_takes_the_file() -> None:
    found = subprocess.run(
        [program("docker-compose"), "--file", str(COMPOSE), "config", "--format", "json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    services = json.loads(found.stdout)["services"]
    for name in ("mailer", "setup", "read", "work", "reconcile", "serve"):
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]


@pytest.mark.manifests
@pytest.mark.timeout(300)
def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    found = subprocess.run([program("hadolint"), str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


@pytest.mark.manifests
@pytest.mark.parametrize("folder", ["base", "embedded"])
def test_kubernetes_resources_are_valid(folder: str) -> None:
    found = resources(folder)
    assert found
    for resource in found:
        kubernetes_validate.validate(resource, "1.31", strict=True)


@pytest.mark.manifests
@pytest.mark.parametrize("folder", ["base", "embedded"])
def test_pods_are_locked_down_and_watched(folder: str) -> None:
    for resource in filter(has_pod, resources(folder)):
        pod = resource["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["automountServiceAccountToken"] is False
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]
        ports = {port["name"] for port in container["ports"]}
        for probe, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
            assert container[probe]["httpGet"]["path"] == path
            assert container[probe]["httpGet"]["port"] in ports
        labels = resource["spec"]["template"]["metadata"]["labels"]
        assert resource["spec"]["selector"]["matchLabels"].items() <= labels.items()


@pytest.mark.manifests
def test_budgets_and_services_select_pods_that_exist() -> None:
    for folder in ("base", "embedded"):
        found = resources(folder)
        pods = [it["spec"]["template"]["metadata"]["labels"].items() for it in found if has_pod(it)]
        for resource in found:
            selector = resource.get("spec", {}).get("selector") or {}
            wanted = selector.get("matchLabels", selector)
            if resource["kind"] in ("Service", "PodDisruptionBudget"):
                assert any(wanted.items() <= labels for labels in pods), resource["metadata"]["name"]


@pytest.mark.manifests
def test_overlay_patches_and_scales_what_the_base_has() -> None:
    base = {(it["kind"], it["metadata"]["name"]) for it in resources("base")}
    folder = KUBERNETES / "overlays" / "production"
    (overlay,) = documents(folder / "kustomization.yaml")
    assert [(folder / name).resolve() for name in overlay["resources"]] == [KUBERNETES / "base"]
    for patch in overlay["patches"]:
        (target,) = documents(folder / patch["path"])
        assert (target["kind"], target["metadata"]["name"]) in base
    assert {it["name"] for it in overlay["replicas"]} <= {name for _, name in base}
    images = {it["spec"]["template"]["spec"]["containers"][0]["image"] for it in resources("base") if has_pod(it)}
    assert images == {it["name"] for it in overlay["images"]}


@pytest.mark.manifests
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_systemd_takes_the_units(path: Path, tmp_path: Path) -> None:
    """With a program and a user that exist here; else every word as it stands."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here: systemd runs on Linux alone")
    text = path.read_text().replace("/opt/sentstream/bin/sentstream", "/bin/true")
    text = re.sub(r"^(User|Group)=sentstream$", r"\1=root", text, flags=re.MULTILINE)
    copy = tmp_path / path.name.replace("@", "@1")
    copy.write_text(text)
    found = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)
    said = [line for line in found.stderr.splitlines() if copy.name in line]
    assert (found.returncode, said) == (0, []), found.stderr
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(copy)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert rated.returncode == 0, rated.stdout  # 2.0 of 10 at most


@pytest.mark.manifests
def test_grafana_finds_the_dashboard() -> None:
    (provider,) = documents(DEPLOY / "grafana" / "provisioning" / "dashboards" / "sentstream.yml")
    folder = provider["providers"][0]["options"]["path"]
    volumes = documents(COMPOSE)[0]["services"]["grafana"]["volumes"]
    assert f"./deploy/grafana/sentstream.json:{folder}/sentstream.json:ro" in volumes
