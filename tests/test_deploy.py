"""What `deploy/`, `docker-compose.yml` and the `Dockerfile` say of the proxy is true: settings, ports and probes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from nacos_proxy import __version__
from nacos_proxy.app.policies import loopback
from nacos_proxy.app.settings import PREFIX, Settings, load, misspelt_variables
from tests.helpers.live import ProxyProcess, free_port
from tests.helpers.recipes import RECIPES, block

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
UNITS = ("nacos-proxy.service", "nacos-proxy.socket")
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
IMAGE = f"nacos-proxy:{__version__}"
PROXIES = [name for name, service in SERVICES.items() if service["image"] == IMAGE]


def settings_of(variables: Mapping[str, str]) -> Settings:
    """The settings that the proxy takes from these variables; fails if it does not know one of them."""
    unknown = [name for name in variables if name.removeprefix(PREFIX).lower() not in Settings.model_fields]
    assert unknown == []
    assert misspelt_variables(variables) == []
    return load({}, Path(os.devnull), variables).settings


# systemd


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_units_are_accepted_by_systemd(tmp_path: Path) -> None:
    for name in UNITS:  # the program that is there, because systemd looks for it
        text = (DEPLOY / name).read_text("utf-8").replace("/opt/nacos-proxy/bin/nacos-proxy", sys.executable)
        (tmp_path / name).write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", *UNITS], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")  # an unknown key is only a warning


def test_service_sets_only_existing_settings() -> None:
    text = (DEPLOY / "nacos-proxy.service").read_text("utf-8")
    named = re.findall(rf"^(?:# )?Environment=.*?{PREFIX}(\w+)=", text, re.MULTILINE)
    assert named
    assert {name for name in named if name.lower() not in Settings.model_fields} == set()


# the image


def test_dockerfile_copies_what_the_build_needs_and_the_context_has() -> None:
    copied = re.search(r"^COPY (pyproject.+) \./$", DOCKERFILE, re.MULTILINE)
    assert copied is not None
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    for name in (*copied[1].split(), "proxy"):
        assert (ROOT / name).exists()
        assert f"!{name}" in ignored
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert {"README.md", "LICENSE"} <= {name for name in copied[1].split() if name in project}


def test_dockerfile_variables_are_settings_and_its_ports_are_published() -> None:
    variables = dict(re.findall(rf"({PREFIX}\w+)=(\S+)", re.sub(r"^#.*", "", DOCKERFILE, flags=re.MULTILINE)))
    settings = settings_of(variables)
    assert f"\nEXPOSE {settings.port} {settings.port + 1000}\n" in DOCKERFILE
    assert f"\nVOLUME {settings.state_dir}\n" in DOCKERFILE


def test_dockerfile_health_check_runs_the_module_of_the_probes() -> None:
    assert 'CMD ["python", "-m", "nacos_proxy.cli.health"]\n' in DOCKERFILE


# docker-compose


def profiles() -> list[str]:
    return sorted({profile for service in SERVICES.values() for profile in service["profiles"]})


def test_compose_file_begins_with_a_command_for_each_profile() -> None:
    text = (ROOT / "docker-compose.yml").read_text("utf-8").partition("\nx-")[0]
    assert sorted(set(re.findall(r"--profile (\w+)", text))) == profiles()


@pytest.mark.parametrize("profile", profiles())
def test_compose_profiles_have_one_proxy_and_need_nothing_from_other_profiles(profile: str) -> None:
    names = {name for name, service in SERVICES.items() if profile in service["profiles"]}
    assert len(names & set(PROXIES)) == (0 if profile == "observability" else 1)
    assert {other for name in names for other in SERVICES[name].get("depends_on", ())} <= names
    used = {volume.partition(":")[0] for name in names for volume in SERVICES[name].get("volumes", ())}
    assert {volume for volume in used if not volume.startswith("./")} <= COMPOSE["volumes"].keys()


def test_compose_publishes_on_loopback_only_and_no_port_twice_in_a_profile() -> None:
    for profile in profiles():
        chosen = [service for service in SERVICES.values() if profile in service["profiles"]]
        ports = [port for service in chosen for port in service.get("ports", ())]
        assert all(port.startswith("127.0.0.1:") for port in ports)
        assert len(set(ports)) == len(ports)


@pytest.mark.parametrize("name", PROXIES)
def test_compose_proxies_have_valid_settings_and_the_servers_of_their_profile(name: str) -> None:
    settings = settings_of(SERVICES[name]["environment"])
    hosts = re.findall(r"//([\w-]+):8848", ",".join(settings.upstream))
    assert sorted(hosts) == sorted(
        other
        for other, service in SERVICES.items()
        if service["profiles"] == SERVICES[name]["profiles"] and "nacos-server" in service["image"]
    )


def test_compose_nodes_name_each_other() -> None:
    nodes = [name for name, service in SERVICES.items() if service["profiles"] == ["cluster"] and name not in PROXIES]
    for name in nodes:
        assert SERVICES[name]["environment"]["NACOS_SERVERS"].split() == [f"{node}:8848" for node in nodes]
        assert SERVICES[name]["hostname"] == name


# Kubernetes


def pods(manifest: Path) -> Iterator[dict[str, Any]]:
    """The specifications of the pods of a file."""
    for thing in yaml.safe_load_all(manifest.read_text("utf-8")):
        if thing["kind"] in ("Deployment", "DaemonSet"):
            yield thing["spec"]["template"]["spec"]


def proxy_container(manifest: Path) -> dict[str, Any]:
    (pod,) = pods(manifest)
    (found,) = (one for one in (*pod["initContainers"], *pod["containers"]) if one["name"] == "nacos-proxy")
    return found


def variables_of(container: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["value"] for one in container["env"]}


each_manifest = pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.stem)


@pytest.mark.parametrize("page", [*MANIFESTS, RECIPES / "kubernetes-deploy.md"], ids=lambda path: path.stem)
def test_manifests_use_the_image_of_this_version(page: Path) -> None:
    assert set(re.findall(r"nacos-proxy:\d[\w.]+", page.read_text("utf-8"))) == {IMAGE}


@each_manifest
def test_manifests_commented_variables_are_settings(manifest: Path) -> None:
    named = re.findall(rf"{PREFIX}(\w+)", manifest.read_text("utf-8"))
    assert {name for name in named if name.lower() not in Settings.model_fields} == set()


@each_manifest
def test_manifests_mount_the_state_where_the_image_keeps_it(manifest: Path) -> None:
    (pod,) = pods(manifest)
    found = re.search(rf"{PREFIX}STATE_DIR=(\S+)", DOCKERFILE)
    assert found is not None
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in (*pod["initContainers"], *pod["containers"]):
        if container["image"] == IMAGE:
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            assert mounts[found[1]] in volumes


@each_manifest
def test_manifests_give_the_proxy_the_user_of_the_image_and_no_rights(manifest: Path) -> None:
    (pod,) = pods(manifest)
    container = proxy_container(manifest)
    rights = pod.get("securityContext", {}) | container["securityContext"]
    assert rights["runAsNonRoot"] and rights["readOnlyRootFilesystem"] and not rights["allowPrivilegeEscalation"]
    assert rights["capabilities"] == {"drop": ["ALL"]}
    assert f"--uid {rights['runAsUser']} " in DOCKERFILE


@each_manifest
def test_manifests_leave_time_for_the_stop(manifest: Path) -> None:
    (pod,) = pods(manifest)
    settings = settings_of(variables_of(proxy_container(manifest)))
    assert pod["terminationGracePeriodSeconds"] >= 2 * settings.drain_timeout


@each_manifest
def test_manifests_probes_succeed_on_the_proxy_that_they_start(manifest: Path, tmp_path: Path) -> None:
    """Runs them as the kubelet does. Nacos is down, which must not keep a proxy from starting or living."""
    container = proxy_container(manifest)
    (tmp_path / "tokens").write_text("write:" + "0123456789abcdef")
    port = free_port(and_offset=1000)
    variables = variables_of(container) | {f"{PREFIX}PORT": str(port), f"{PREFIX}CONFIG": os.devnull}
    variables[f"{PREFIX}UPSTREAM"] = f"http://127.0.0.1:{free_port()}"
    if f"{PREFIX}TOKENS_FILE" in variables:
        variables[f"{PREFIX}TOKENS_FILE"] = str(tmp_path / "tokens")
    serve = (sys.executable, "-m", "nacos_proxy", *container["args"])
    with ProxyProcess("--port", str(port), env=variables, command=serve):
        for kind in ("startupProbe", "livenessProbe"):
            assert probe(container, kind, port, variables), kind
    assert not probe(container, "livenessProbe", port, variables)


def probe(container: dict[str, Any], kind: str, port: int, variables: Mapping[str, str]) -> bool:
    """Whether a probe succeeds. A busy machine may need longer than the probe would wait."""
    action = container[kind]
    if "exec" in action:
        python, *arguments = action["exec"]["command"]
        assert python == "python"
        return subprocess.run([sys.executable, *arguments], env={**os.environ, **variables}).returncode == 0
    assert not loopback(settings_of(variables_of(container)))  # the kubelet connects to the address of the pod
    named = {one["name"]: one["containerPort"] for one in container["ports"]}
    assert named[action["httpGet"]["port"]] == Settings().port
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{action['httpGet']['path']}", timeout=60) as answer:
            return answer.status == 200
    except OSError:
        return False


def test_manifests_recipe_for_older_clusters_has_the_probes_of_the_sidecar() -> None:
    older = yaml.safe_load(block("kubernetes-deploy", "older-clusters.yaml"))["containers"][0]
    sidecar = proxy_container(DEPLOY / "kubernetes" / "sidecar.yaml")
    assert {name: sidecar[name] for name in older if name in sidecar} == {
        name: value for name, value in older.items() if name in sidecar
    }


def test_manifests_recipe_for_ports_of_the_host_adds_only_these() -> None:
    added = yaml.safe_load(block("kubernetes-deploy", "host-port.yaml"))["ports"]
    ports = proxy_container(DEPLOY / "kubernetes" / "daemonset.yaml")["ports"]
    assert [port | {"hostIP": "127.0.0.1", "hostPort": port["containerPort"]} for port in ports] == added
