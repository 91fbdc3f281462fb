"""What Kubernetes' own schemas don't notice about our manifests: each rule returns its complaints, one line each."""

import re
from collections.abc import Iterator
from typing import Any

Document = dict[str, Any]

NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
UNITS = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
WRITABLE = {"/runs", "/tmp", "/dev/shm", "/data"}
"""The only folders that a container may write to; /data while it is filled."""
REASONABLE_GRACE = 10
"""Seconds that the launcher needs beyond its ranks' grace, to tell the others."""


def quantity(text: str | int) -> float:
    """A Kubernetes quantity such as ``250m`` or ``2Gi`` as a number; ValueError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(\D*)", str(text))
    if match is None or match[2] not in UNITS:
        raise ValueError(f"no quantity: {text!r}")
    return float(match[1]) * UNITS[match[2]]


def templates(document: Document) -> Iterator[Document]:
    """Every pod template in a document, at whatever depth: of a Job, a Deployment, an MPIJob, a RayJob."""
    for key, value in document.items():
        if key.lower().endswith("template") and isinstance(value, dict) and "spec" in value:
            yield value
        elif isinstance(value, dict):
            yield from templates(value)
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, dict):
                    yield from templates(item)


def containers(template: Document) -> list[Document]:
    return [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]


def complaints(documents: list[Document]) -> list[str]:
    """All complaints about what one overlay renders to."""
    found = []
    for document in documents:
        where = f"{document['kind']} {document['metadata']['name']}"
        rules = [names(document), ports(document), job(document)]
        for template in templates(document):
            rules += [security(template), resources(template), volumes(template, documents), images(template)]
        found += [f"{where}: {line}" for rule in rules for line in rule]
    return found + meeting(documents)


def names(document: Document) -> list[str]:
    name = document["metadata"]["name"]
    # A Job's pods add "-INDEX-xxxxx" to it, and the host name may have 63 characters in all.
    longest = 50 if document["kind"] in ("Job", "MPIJob", "RayJob") else 63
    good = NAME.fullmatch(name) and len(name) <= longest
    return [] if good else [f"name {name!r} is no DNS label of at most {longest} characters"]


def ports(document: Document) -> list[str]:
    numbers: list[Any] = []

    def collect(value: Any) -> None:
        if isinstance(value, dict):
            numbers.extend(v for k, v in value.items() if k in ("port", "containerPort", "targetPort"))
            for inner in value.values():
                collect(inner)
        elif isinstance(value, list):
            for inner in value:
                collect(inner)

    collect(document.get("spec", {}))
    return [f"port {n} is not from 1 to 65535" for n in numbers if isinstance(n, int) and not 1 <= n <= 65535]


def job(document: Document) -> list[str]:
    if document["kind"] != "Job":
        return []
    spec = document["spec"]
    pod = spec["template"]["spec"]
    environment = {e["name"]: e.get("value") for e in pod["containers"][0].get("env", [])}
    rules = spec.get("podFailurePolicy", {}).get("rules", [])
    by_code = {code: r["action"] for r in rules for code in r.get("onExitCodes", {}).get("values", [])}
    disrupted = [r["action"] for r in rules for c in r.get("onPodConditions", []) if c["type"] == "DisruptionTarget"]
    checks = {
        "completionMode is not Indexed": spec.get("completionMode") == "Indexed",
        "restartPolicy is not Never, which podFailurePolicy needs": pod.get("restartPolicy") == "Never",
        "parallelism is not completions: a part of the ranks would wait for ever": spec["parallelism"]
        == spec["completions"],
        "exit code 2 does not fail the Job": by_code.get(2) == "FailJob",
        "exit code 75 is not ignored": by_code.get(75) == "Ignore",
        "disruptions are not ignored": disrupted == ["Ignore"],
        "podReplacementPolicy is not Failed": spec.get("podReplacementPolicy") == "Failed",
        "backoffLimit is not set": spec.get("backoffLimit", -1) >= 0,
        "activeDeadlineSeconds is not set": spec.get("activeDeadlineSeconds", 0) > 0,
        "ttlSecondsAfterFinished is not set": spec.get("ttlSecondsAfterFinished", 0) > 0,
        "successPolicy does not wait for pod 0": [r.get("succeededIndexes") for r in spec["successPolicy"]["rules"]]
        == ["0"],
    }
    if "launch" in pod["containers"][0].get("args", []):
        checks["HOROVOD_LAUNCH_PODS is not completions"] = environment["HOROVOD_LAUNCH_PODS"] == str(
            spec["completions"]
        )
    return [complaint for complaint, good in checks.items() if not good]


def security(template: Document) -> list[str]:
    """Pod Security Standard *restricted*, and beyond it a read-only root and no service account token."""
    spec = template["spec"]
    pod = spec.get("securityContext", {})
    checks = {
        "runAsNonRoot is not true": pod.get("runAsNonRoot") is True,
        "runAsUser is no number above 0": isinstance(pod.get("runAsUser"), int) and pod["runAsUser"] > 0,
        "seccompProfile is not RuntimeDefault": pod.get("seccompProfile", {}).get("type") == "RuntimeDefault",
        "the service account token is mounted": spec.get("automountServiceAccountToken") is False,
        "it uses the host's namespaces": not any(spec.get(f"host{n}") for n in ("Network", "PID", "IPC", "Users")),
        "a volume is of a kind that restricted forbids": all(
            set(v) & {"configMap", "emptyDir", "persistentVolumeClaim", "secret", "projected"}
            for v in spec.get("volumes", [])
        ),
    }
    for container in containers(template):
        own, name = container.get("securityContext", {}), container["name"]
        checks |= {
            f"{name} may gain privileges": own.get("allowPrivilegeEscalation") is False,
            f"{name} is privileged": not own.get("privileged"),
            f"{name} keeps capabilities": own.get("capabilities") == {"drop": ["ALL"]},
            f"{name} may write to its root file system": own.get("readOnlyRootFilesystem") is True,
            f"{name} runs as root": own.get("runAsUser", 1) != 0 and own.get("runAsNonRoot", True),
        }
    return [complaint for complaint, good in checks.items() if not good]


def resources(template: Document) -> list[str]:
    found = []
    for container in containers(template):
        requests = container.get("resources", {}).get("requests", {})
        limits = container.get("resources", {}).get("limits", {})
        for kind in ("cpu", "memory"):
            if kind not in requests or kind not in limits:
                found.append(f"{container['name']} lacks a request or limit for {kind}")
            elif quantity(requests[kind]) > quantity(limits[kind]):
                found.append(f"{container['name']} requests more {kind} than its limit")
        if requests.get("memory") != limits.get("memory"):
            found.append(f"{container['name']} does not request all of its memory")
    return found


def volumes(template: Document, documents: list[Document]) -> list[str]:
    found = []
    there = {(d["kind"], d["metadata"]["name"]) for d in documents}
    declared = {v["name"]: v for v in template["spec"].get("volumes", [])}
    for volume in declared.values():
        if "configMap" in volume and ("ConfigMap", volume["configMap"]["name"]) not in there:
            found.append(f"no ConfigMap {volume['configMap']['name']}")
        claim = volume.get("persistentVolumeClaim", {}).get("claimName")
        if claim and ("PersistentVolumeClaim", claim) not in there:
            found.append(f"no PersistentVolumeClaim {claim}")
        if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
            found.append(f"volume {volume['name']} has no limit")
    for container in containers(template):
        memory = quantity(container["resources"]["limits"]["memory"])
        for mount in container.get("volumeMounts", []):
            volume = declared.get(mount["name"])
            if volume is None:
                found.append(f"{container['name']} mounts {mount['name']}, which is no volume")
            elif mount["mountPath"] not in WRITABLE and not mount.get("readOnly"):
                found.append(f"{container['name']} may write to {mount['mountPath']}")
            elif mount["mountPath"] == "/dev/shm" and (
                volume["emptyDir"].get("medium") != "Memory" or quantity(volume["emptyDir"]["sizeLimit"]) > memory
            ):
                found.append("/dev/shm is no memory volume within the memory limit")
        for source in container.get("envFrom", []):
            if ("ConfigMap", source["configMapRef"]["name"]) not in there:
                found.append(f"no ConfigMap {source['configMapRef']['name']}")
    return found


def images(template: Document) -> list[str]:
    found = []
    for container in containers(template):
        _, _, tag = container["image"].partition(":")
        if tag in ("", "latest"):
            found.append(f"{container['name']} has an image without a fixed tag: {container['image']}")
        if container.get("imagePullPolicy") != "IfNotPresent":
            found.append(f"{container['name']} does not use an image that is already there")
    return found


def meeting(documents: list[Document]) -> list[str]:
    """Whether the launchers can find each other, and have the time to save."""
    found = []
    services = {d["metadata"]["name"]: d["spec"] for d in documents if d["kind"] == "Service"}
    settings = {k: v for d in documents if d["kind"] == "ConfigMap" for k, v in d["data"].items()}
    for document in documents:
        for template in templates(document):
            pod, container = template["spec"], template["spec"]["containers"][0]
            if "launch" not in container.get("args", []):
                continue
            service = services.get(pod.get("subdomain", ""))
            environment = {e["name"]: e.get("value", "") for e in container["env"]}
            if service is None:
                found.append(f"subdomain {pod.get('subdomain')!r} is no Service: pod 0 has no name")
                continue
            labels = template["metadata"]["labels"]
            grace = pod["terminationGracePeriodSeconds"] - float(settings["HOROVOD_LAUNCH_GRACE"])
            checks = {
                "the Service is not headless": service.get("clusterIP") == "None",
                "the Service hides pods that are not ready": service.get("publishNotReadyAddresses") is True,
                "the Service does not select the pods": service["selector"].items() <= labels.items(),
                "pod 0's name is not of the Service": environment["HOROVOD_LAUNCH_COORDINATOR"]
                == "$(JOB_NAME)-0.$(SERVICE_NAME)"
                and environment["SERVICE_NAME"] == pod["subdomain"],
                "the last lines of a failed pod are not kept": container.get("terminationMessagePolicy")
                == "FallbackToLogsOnError",
                "the grace period leaves no time to tell the others": grace >= REASONABLE_GRACE,
            }
            found += [complaint for complaint, good in checks.items() if not good]
    return found
