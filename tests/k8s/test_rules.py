"""That our own rules and the schemas notice what they are for."""

import copy
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

from tests.k8s.rules import complaints
from tests.k8s.test_manifests import VERSIONS, check_schemas, pytestmark, render

__all__ = ["pytestmark"]


def break_job(change: Callable[[Any], object]) -> list[str]:
    documents = copy.deepcopy(render("cpu-local"))
    change(next(d for d in documents if d["kind"] == "Job"))
    return complaints(documents)


def pod(job: Any) -> Any:
    return job["spec"]["template"]["spec"]


def env(job: Any, name: str) -> Any:
    return next(e for e in pod(job)["containers"][0]["env"] if e["name"] == name)


BREAKS: dict[str, tuple[Callable[[Any], object], str]] = {
    "mode": (lambda j: j["spec"].update(completionMode="NonIndexed"), "completionMode"),
    "restart": (lambda j: pod(j).update(restartPolicy="Always"), "restartPolicy"),
    "parallelism": (lambda j: j["spec"].update(parallelism=1), "parallelism"),
    "pods": (lambda j: j["spec"].update(completions=3, parallelism=3), "HOROVOD_LAUNCH_PODS"),
    "exit 2": (lambda j: j["spec"]["podFailurePolicy"]["rules"].pop(0), "exit code 2"),
    "exit 75": (lambda j: j["spec"]["podFailurePolicy"]["rules"].pop(1), "exit code 75"),
    "disruption": (lambda j: j["spec"]["podFailurePolicy"]["rules"].pop(2), "disruptions"),
    "request": (lambda j: pod(j)["containers"][0]["resources"]["requests"].update(cpu="3"), "more cpu"),
    "memory": (lambda j: pod(j)["containers"][0]["resources"]["requests"].update(memory="1Gi"), "all of its memory"),
    "name": (lambda j: j["metadata"].update(name="Fashion_Train"), "DNS label"),
    "port": (lambda j: pod(j)["containers"][0].update(ports=[{"containerPort": 70000}]), "70000"),
    "root": (lambda j: pod(j)["securityContext"].update(runAsUser=0), "runAsUser"),
    "escalation": (lambda j: pod(j)["containers"][0]["securityContext"].pop("allowPrivilegeEscalation"), "gain"),
    "capabilities": (lambda j: pod(j)["containers"][0]["securityContext"].pop("capabilities"), "capabilities"),
    "seccomp": (lambda j: pod(j)["securityContext"].pop("seccompProfile"), "seccomp"),
    "writable root": (lambda j: pod(j)["containers"][0]["securityContext"].pop("readOnlyRootFilesystem"), "root file"),
    "token": (lambda j: pod(j).pop("automountServiceAccountToken"), "token"),
    "host path": (lambda j: pod(j)["volumes"].append({"name": "h", "hostPath": {"path": "/"}}), "restricted forbids"),
    "host network": (lambda j: pod(j).update(hostNetwork=True), "host's namespaces"),
    "config": (lambda j: pod(j)["volumes"][0]["configMap"].update(name="other"), "no ConfigMap other"),
    "claim": (lambda j: pod(j)["volumes"][1]["persistentVolumeClaim"].update(claimName="other"), "Claim other"),
    "shm": (lambda j: pod(j)["volumes"][3]["emptyDir"].update(sizeLimit="64Gi"), "/dev/shm"),
    "image": (lambda j: pod(j)["containers"][0].update(image="fashion-job"), "fixed tag"),
    "pull": (lambda j: pod(j)["containers"][0].update(imagePullPolicy="Always"), "already there"),
    "grace": (lambda j: pod(j).update(terminationGracePeriodSeconds=30), "grace period"),
    "service name": (lambda j: env(j, "SERVICE_NAME").update(value="other"), "pod 0's name is not"),
    "messages": (lambda j: pod(j)["containers"][0].pop("terminationMessagePolicy"), "last lines"),
    "subdomain": (lambda j: pod(j).update(subdomain="other"), "pod 0 has no name"),
}  # fmt: skip


@pytest.mark.parametrize("what", BREAKS)
def test_each_rule_notices_what_it_is_for(what: str) -> None:
    change, complaint = BREAKS[what]
    found = break_job(change)
    assert any(complaint in line for line in found), found


def test_the_schemas_notice_an_unknown_field() -> None:
    for overlay, kind in (("cpu-local", "Job"), ("mpijob", "MPIJob"), ("sweep-rayjob", "RayJob")):
        documents = copy.deepcopy(render(overlay))
        next(d for d in documents if d["kind"] == kind)["spec"]["unheardOf"] = 1
        with pytest.raises(jsonschema.ValidationError):
            check_schemas(documents, VERSIONS[0])
