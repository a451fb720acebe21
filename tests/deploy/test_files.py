"""The files of docs/deploy/ are what their programs take, and agree with each other and with the app."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import subprocess
import sys
from importlib import resources as package_files
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from django.core.management import get_commands
from django.test import override_settings

from messaging import conf
from messaging.checks import check_messaging
from tests.deploy.files import (
    DEPLOY,
    MANIFESTS,
    UNITS,
    compose,
    documents,
    manage_commands,
    pods,
    resources,
    seconds,
)
from tests.docs.blocks import find
from tests.docs.test_snippets import parser_of
from tests.site import ROOT

OF_KEDA = {"ScaledObject", "TriggerAuthentication"}  # whose schema KEDA brings into a cluster
KUBERNETES = ["1.31", "1.34"]
COMPOSE = [DEPLOY / "compose.yaml", ROOT / "compose.yaml"]


def names(folder: str) -> set[str]:
    return {path.name for path in (DEPLOY / folder).iterdir()}


def settings_of(folder: Path) -> dict[str, Any]:
    """What the settings for containers say where the secrets are in a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECRETS", str(folder))
        return runpy.run_path(str(DEPLOY / "settings.py"))


def test_every_command_can_be_given_so() -> None:
    lines = [container["command"] for _, pod in pods() for container in pod["containers"]]
    for _, pod in pods():
        for container in pod["containers"]:
            probes = (container.get(name, {}) for name in ("livenessProbe", "readinessProbe"))
            lines += [probe["exec"]["command"] for probe in probes if "exec" in probe]
    for service in compose()["services"].values():
        lines += [service[name] for name in ("command",) if name in service]
        lines += [service["healthcheck"]["test"]] if "healthcheck" in service else []
    lines.append(json.loads(re.findall(r"^CMD (.+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)[0]))
    commands = [command for words in lines for command in manage_commands(words)]
    assert {"consume", "relay", "prune_messages", "migrate", "topology", "messaging_health", "send_alerts"} == {
        command[0] for command in commands
    }
    for name, *arguments in commands:
        assert name in get_commands(), name
        parser_of(name).parse_args(arguments)


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_compose_file_is_what_its_specification_says(path: Path) -> None:
    vendored = package_files.files("check_jsonschema.builtin_schemas.vendor")
    schema = json.loads((vendored / "compose-spec.json").read_text())
    (document,) = documents(path)
    jsonschema.validate(document, schema)
    wrong = json.loads(json.dumps(document))
    next(iter(wrong["services"].values()))["helthcheck"] = {}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)


def test_the_compose_file_names_what_there_is() -> None:
    file = compose()
    declared = set(file["secrets"])
    for name, service in file["services"].items():
        used = {one if isinstance(one, str) else one["source"] for one in service.get("secrets", [])}
        assert used <= declared, name
        assert set(service.get("depends_on", {})) <= set(file["services"]), name
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert source in file["volumes"] or source == "./secrets/definitions.json" or (ROOT / source).is_file()


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_is_what_kubernetes_takes(path: Path, version: str) -> None:
    for document in documents(path):
        if document["kind"] in {*OF_KEDA, "Kustomization"}:
            continue
        kubernetes_validate.validate(document, version, strict=True)
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate({**document, "sepc": {}}, version, strict=True)


def test_the_kustomization_lists_every_manifest_but_the_job_of_a_release_and_what_needs_keda() -> None:
    (listed,) = documents(DEPLOY / "kubernetes" / "kustomization.yaml")
    assert set(listed["resources"]) == names("kubernetes") - {"kustomization.yaml", "release.yaml", "autoscaling.yaml"}


def test_what_selects_pods_finds_them() -> None:
    labels = [{"app": "shop", "process": process} for process, _ in pods()]
    for resource in resources():
        spec = resource.get("spec", {})
        selector = spec.get("podSelector", spec.get("selector", {}))
        wanted = selector.get("matchLabels", selector if resource["kind"] == "Service" else {})
        assert not wanted or any(wanted.items() <= one.items() for one in labels), resource["metadata"]


def test_the_autoscaler_scales_the_consumers_by_a_queue_that_they_consume() -> None:
    made = {resource["kind"]: resource for resource in documents(DEPLOY / "kubernetes" / "autoscaling.yaml")}
    assert set(made) == OF_KEDA
    spec = made["ScaledObject"]["spec"]
    deployments = {one["metadata"]["name"] for one in resources() if one["kind"] == "Deployment"}
    assert spec["scaleTargetRef"]["name"] in deployments
    (trigger,) = spec["triggers"]
    assert (trigger["type"], trigger["metadata"]["mode"]) == ("rabbitmq", "QueueLength")
    assert all(isinstance(value, str) for value in trigger["metadata"].values()), "KEDA takes texts alone"
    reads = [one["read"] for one in definitions()["permissions"] if one["user"] == "consumer"]
    assert re.search(reads[0], trigger["metadata"]["queueName"])
    assert trigger["authenticationRef"]["name"] == made["TriggerAuthentication"]["metadata"]["name"]
    assert made["TriggerAuthentication"]["spec"]["secretTargetRef"][0]["parameter"] == "host"


def test_no_process_runs_as_root_or_may_write_into_its_image() -> None:
    user = re.findall(r"^USER (.+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)[-1]
    for process, pod in pods():
        assert pod["securityContext"]["runAsNonRoot"], process
        assert str(pod["securityContext"]["runAsUser"]) == user, process
        assert not pod["automountServiceAccountToken"], process
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {mount["name"] for mount in container["volumeMounts"]} == {"secrets", "tmp"}


def test_every_process_has_longer_to_stop_than_its_handlers(tmp_path: Path) -> None:
    stop = settings_of(tmp_path)["MESSAGING"]["default"]["STOP_TIMEOUT"]
    for process, pod in pods():
        if process in ("consumer", "relay", "web"):
            assert pod["terminationGracePeriodSeconds"] >= stop + 5, process
    for name in ("consumer", "relay"):
        assert seconds(compose()["services"][name]["stop_grace_period"]) >= stop + 5
    unit = (DEPLOY / "systemd" / "shop-consume.service").read_text()
    assert int(re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)[0]) >= stop + 5


def test_each_process_has_an_account_and_that_ones_password_alone(tmp_path: Path) -> None:
    known = {user["name"] for user in definitions()["users"]}
    default = settings_of(tmp_path)["MESSAGING"]["default"]["USER"]
    for process, pod in pods():
        (container,) = pod["containers"]
        user = {one["name"]: one["value"] for one in container.get("env", [])}.get("BROKER_USER", default)
        (volume,) = (volume for volume in pod["volumes"] if volume["name"] == "secrets")
        given = [source["secret"]["name"] for source in volume["projected"]["sources"]]
        assert (user in known, given) == (True, ["shop", f"shop-{user}"]), process
    for name, service in compose()["services"].items():
        if "environment" in service and "BROKER_USER" in service["environment"]:
            given = [one["source"] for one in service["secrets"] if isinstance(one, dict)]
            assert given == [f"{service['environment']['BROKER_USER']}-password"], name


def definitions() -> dict[str, Any]:
    made: dict[str, Any] = json.loads((DEPLOY / "rabbitmq" / "definitions.json").read_text())
    return made


def test_the_accounts_have_the_permissions_that_the_page_explains() -> None:
    (block,) = find("permissions")
    told = {tuple(shlex.split(line)[3:]) for line in block.lines}
    given = {
        tuple(one[name] for name in ("vhost", "user", "configure", "write", "read"))
        for one in definitions()["permissions"]
    }
    assert given <= told
    assert {one[1] for one in given} == {user["name"] for user in definitions()["users"]}


def test_no_password_is_shipped_and_those_that_are_made_are_kept(tmp_path: Path) -> None:
    assert {user["password_hash"] for user in definitions()["users"]} == {""}  # with which nobody can log in
    command = [sys.executable, str(DEPLOY / "make_secrets.py"), str(tmp_path / "secrets")]
    subprocess.run(command, check=True, timeout=60)
    first = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert set(first) == {*compose()["secrets"], "definitions.json"}
    assert len(set(first.values())) == len(first)
    (tmp_path / "secrets" / "relay-password").unlink()
    subprocess.run(command, check=True, timeout=60)
    second = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert {name for name in first if first[name] != second[name]} == {"relay-password", "definitions.json"}


def test_the_settings_for_containers_pass_the_system_checks(tmp_path: Path) -> None:
    (tmp_path / "broker-password").write_text("from the file\n")
    (tmp_path / "secret-key").write_text("of the site\n")
    made = settings_of(tmp_path)
    assert made["SECRET_KEY"] == "of the site"
    with override_settings(MESSAGING=made["MESSAGING"]):
        assert check_messaging() == []
        assert conf.get().credentials()[1] == "from the file"
    assert settings_of(tmp_path / "nothing")["SECRET_KEY"] == ""


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_the_units_are_those_that_the_page_shows(path: Path) -> None:
    shown = {Path(block.title).name: block.text for block in find("systemd")}
    assert path.read_text() == shown[path.name]
    assert names("systemd") == set(shown)
