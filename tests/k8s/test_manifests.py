"""Every overlay, rendered: valid for Kubernetes 1.30 and newer, and as strict as we promise."""

import functools
import importlib.util
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import kubernetes_validate.utils
import pytest
import yaml

from horovod_keras.launch import parse
from job.config import parse_flags, resolve
from tests.k8s.rules import Document, complaints, containers, templates
from tune.settings import parse as parse_search

ROOT = Path(__file__).parents[2]
OVERLAYS = sorted(path.name for path in (ROOT / "k8s/overlays").iterdir() if path.is_dir())
VERSIONS = [v for v in kubernetes_validate.utils.all_versions() if tuple(map(int, v.split(".")[:2])) >= (1, 30)]

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl here to render overlays with")


@functools.cache
def _render(folder: Path) -> str:
    run = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def render(overlay: str) -> list[Document]:
    return list(yaml.safe_load_all(_render(ROOT / "k8s/overlays" / overlay)))


def with_component(tmp_path: Path, overlay: str, component: str) -> list[Document]:
    """An overlay with one more component, as the documentation tells people to add it."""
    parts = {"resources": f"k8s/overlays/{overlay}", "components": f"k8s/components/{component}"}
    relative = {key: [os.path.relpath(ROOT / path, tmp_path.resolve())] for key, path in parts.items()}
    return render_kustomization(tmp_path, relative)


def render_kustomization(folder: Path, content: Document) -> list[Document]:
    content = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"} | content
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))
    return list(yaml.safe_load_all(_render(folder)))


def check_schemas(documents: list[Document], version: str) -> None:
    for document in documents:
        if document["kind"] in ("MPIJob", "RayJob"):
            crd = yaml.safe_load((Path(__file__).parent / f"crds/{document['kind'].lower()}.yaml").read_text())
            jsonschema.Draft202012Validator(crd).validate(document)
            pods = list(templates(document))
            assert len(pods) >= 2
        else:
            kubernetes_validate.validate(document, version, strict=True)
            pods = []
        for template in pods:
            wrapped = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "any"}, "template": template}
            kubernetes_validate.validate(wrapped, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_overlay_is_valid(overlay: str, version: str) -> None:
    check_schemas(render(overlay), version)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_overlay_keeps_our_rules(overlay: str) -> None:
    assert complaints(render(overlay)) == []


@pytest.mark.parametrize("component", ["kueue", "data-download", "prometheus", "tensorboard"])
def test_each_component_can_be_added(component: str, tmp_path: Path) -> None:
    documents = with_component(tmp_path, "cpu-local", component)
    check_schemas(documents, VERSIONS[0])
    ours = [d for d in documents if d["kind"] != "Deployment"]
    # A component has no overlay's image: its own containers keep the plain name until an overlay gives it a tag.
    assert [c for c in complaints(ours) if "fixed tag: fashion-job" not in c] == []


@pytest.mark.parametrize(
    ("overlay", "kind"), [("cpu-local", "Job"), ("sweep-job", "Job"), ("mpijob", "MPIJob"), ("sweep-rayjob", "RayJob")]
)
def test_kueue_makes_whatever_is_run_wait_in_a_queue(overlay: str, kind: str, tmp_path: Path) -> None:
    documents = with_component(tmp_path, overlay, "kueue")
    check_schemas(documents, VERSIONS[0])
    job = next(d for d in documents if d["kind"] == kind)
    assert job["spec"].get("runPolicy", job["spec"])["suspend"] is True
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "fashion"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_second_job_of_another_name_keeps_its_rules_and_its_volumes(overlay: str, tmp_path: Path) -> None:
    base = os.path.relpath(ROOT / "k8s/overlays" / overlay, tmp_path.resolve())
    documents = render_kustomization(tmp_path, {"resources": [base], "nameSuffix": "-b", "namespace": "other"})
    assert complaints(documents) == []
    assert all("-b" in d["metadata"]["name"] for d in documents)  # generated ones have a digest behind it
    claims = {d["metadata"]["name"] for d in documents if d["kind"] == "PersistentVolumeClaim"}
    volumes = [v.get("persistentVolumeClaim") for d in documents for t in templates(d) for v in t["spec"]["volumes"]]
    assert claims == {volume["claimName"] for volume in volumes if volume}


def test_a_pod_of_the_gpu_overlays_does_not_train_on_its_processor() -> None:
    for overlay in ("gpu", "many-nodes"):
        (spec,) = (t["spec"] for d in render(overlay) for t in templates(d))
        (container,) = spec["containers"]
        assert {"name": "FASHION_NEEDS_GPU", "value": "1"} in container["env"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] > 0


def test_the_pod_that_fetches_results_is_as_restricted_as_the_others() -> None:
    pod = yaml.safe_load((ROOT / "k8s/fetch.yaml").read_text())
    claims = [d for d in render("cpu-local") if d["kind"] == "PersistentVolumeClaim"]
    for version in VERSIONS:
        kubernetes_validate.validate(pod, version, strict=True)
    assert complaints([{"kind": "Fetch", "metadata": pod["metadata"], "template": pod}, *claims]) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_image_is_set_in_one_place(overlay: str) -> None:
    images = {c["image"] for d in render(overlay) for t in templates(d) for c in containers(t)}
    assert len(images) == 1
    kustomization = yaml.safe_load((ROOT / f"k8s/overlays/{overlay}/kustomization.yaml").read_text())
    assert images == {f"{i['newName']}:{i['newTag']}" for i in kustomization["images"]}


@pytest.mark.parametrize("overlay", ["cpu-local", "gpu", "many-nodes"])
def test_the_number_of_pods_is_set_in_one_place(overlay: str) -> None:
    text = (ROOT / f"k8s/overlays/{overlay}/kustomization.yaml").read_text()
    job = next(d for d in render(overlay) if d["kind"] == "Job")
    assert text.count(f"path: /spec/completions, value: {job['spec']['completions']}") == 1
    assert "path: /spec/parallelism" not in text


def configurations() -> list[Path]:
    return sorted(ROOT.glob("k8s/**/config.yaml"))


@pytest.mark.parametrize("file", configurations(), ids=lambda file: file.parent.name)
def test_the_job_accepts_each_configuration(file: Path) -> None:
    command = [sys.executable, "-m", "job.train", "--config", str(file), "--print-config"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert yaml.safe_load(run.stdout)["run"].startswith("/runs/")


@pytest.mark.parametrize("overlay", ["cpu-local", "gpu", "many-nodes"])
def test_the_launcher_accepts_what_the_pods_give_it(overlay: str) -> None:
    documents = render(overlay)
    job = next(d for d in documents if d["kind"] == "Job")
    container = job["spec"]["template"]["spec"]["containers"][0]
    settings = next(
        d["data"] for d in documents if d["metadata"]["name"] == container["envFrom"][0]["configMapRef"]["name"]
    )
    given = {"status.podIP": "10.1.2.3", "metadata.labels['batch.kubernetes.io/job-name']": "fashion-train"}
    given["metadata.labels['batch.kubernetes.io/controller-uid']"] = "2c1ab5b0-9a4e-4a57-8f0a-0123456789ab"
    environment = dict(settings) | {"JOB_COMPLETION_INDEX": str(job["spec"]["completions"] - 1)}
    for entry in container["env"]:
        field = entry.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        if field or "value" in entry:
            value = given[field] if field else entry["value"]
            environment[entry["name"]] = re.sub(r"\$\((\w+)\)", lambda m: environment[m[1]], value)
    assert container["args"][0] == "launch"
    launcher = parse(container["args"][1:], environment)
    assert launcher.pods == job["spec"]["completions"] and launcher.pod_index == launcher.pods - 1
    assert launcher.coordinator == "fashion-train-0.fashion-train" and launcher.address == "10.1.2.3"
    assert launcher.rules.rejoin and launcher.secret == b"2c1ab5b0-9a4e-4a57-8f0a-0123456789ab"
    assert launcher.command[:3] == ["python", "-m", "job.train"]


@pytest.mark.parametrize("overlay", ["sweep-job", "sweep-rayjob"])
def test_the_sweep_accepts_its_arguments_and_fetches_no_weights_of_its_own(overlay: str) -> None:
    documents = render(overlay)
    spec = next(d["spec"] for d in documents if d["kind"] in ("Job", "RayJob"))
    ray = spec.get("entrypoint")
    line = shlex.split(ray) if ray else spec["template"]["spec"]["containers"][0]["args"]
    search = parse_search(line[3:] if ray else line[1:])
    assert str(search.settings.out) == "/runs/sweep"
    assert search.space.fixed["weights"] == "/data/fashion-job/weights/mobilenet_1_0_224_tf_no_top.h5"
    initial = [c for d in documents for t in templates(d) for c in t["spec"].get("initContainers", [])]
    assert len(initial) == 1


@pytest.mark.parametrize("overlay", ["gpu", "many-nodes", "sweep-job", "sweep-rayjob"])
def test_the_download_is_a_command_that_wants_both_data_and_weights(overlay: str) -> None:
    (container,) = [c for d in render(overlay) for t in templates(d) for c in t["spec"].get("initContainers", [])]
    line = [*container["command"], *container.get("args", [])]
    module = line.index("-m") + 1
    assert line[module - 2] == "python" and importlib.util.find_spec(line[module]) is not None
    assert line[module] == "job.fetch"
    assert resolve([parse_flags(line[module + 1 :], "fetch")]).weights == "imagenet"
    assert {"--dataset", "--weights"} <= {*line}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_shared_memory_is_what_ranks_nccl_and_ray_need(overlay: str) -> None:
    wanted = {"many-nodes": ["8Gi"], "sweep-job": ["4Gi"], "sweep-rayjob": ["2Gi", "4Gi", "512Mi"]}
    pods = [t["spec"]["volumes"] for d in render(overlay) for t in templates(d)]
    sizes = [v["emptyDir"]["sizeLimit"] for volumes in pods for v in volumes if v["name"] == "shm"]
    assert sizes == wanted.get(overlay, ["512Mi"] * len(pods))
    assert all(v["emptyDir"]["sizeLimit"] == "4Gi" for volumes in pods for v in volumes if v["name"] == "tmp")


def test_no_pod_of_cpu_local_needs_a_download() -> None:
    documents = render("cpu-local")
    settings = next(yaml.safe_load(d["data"]["config.yaml"]) for d in documents if "config.yaml" in d.get("data", {}))
    assert settings["dataset"] == "garments" and settings["weights"] == "none"
    assert not any("initContainers" in t["spec"] for d in documents for t in templates(d))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_may_talk_to_each_other_and_to_the_name_service_alone_unless_they_download(overlay: str) -> None:
    documents = render(overlay)
    policies = [d["spec"] for d in documents if d["kind"] == "NetworkPolicy"]
    ours = {"matchLabels": {"app.kubernetes.io/name": "fashion-job"}}
    assert {"podSelector": ours, "policyTypes": ["Ingress", "Egress"]} in policies
    for template in (t for d in documents for t in templates(d)):
        assert template["metadata"]["labels"]["app.kubernetes.io/name"] == "fashion-job"
    outside = {p["port"] for s in policies for rule in s.get("egress", []) if "to" not in rule for p in rule["ports"]}
    downloads = any("initContainers" in t["spec"] for d in documents for t in templates(d))
    assert outside == ({53, 80, 443} if downloads else {53})
    senders = [sender for s in policies for rule in s.get("ingress", []) for sender in rule["from"]]
    assert all(s == {"podSelector": ours} or "namespaceSelector" in s for s in senders)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_secret_is_written_down(overlay: str) -> None:
    assert not [d for d in render(overlay) if d["kind"] == "Secret"]


def test_the_mpijob_runs_one_rank_a_slot_and_ssh_on_a_high_port() -> None:
    spec = next(d["spec"] for d in render("mpijob") if d["kind"] == "MPIJob")
    launcher, worker = (spec["mpiReplicaSpecs"][n]["template"]["spec"] for n in ("Launcher", "Worker"))
    assert spec["launcherCreationPolicy"] == "AtStartup"
    assert [spec["mpiReplicaSpecs"][n]["restartPolicy"] for n in ("Launcher", "Worker")] == ["Never", "OnFailure"]
    assert {"cleanPodPolicy", "backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished", "suspend"} == set(
        spec["runPolicy"]
    )
    arguments = launcher["containers"][0]["args"]
    ssh = shlex.split(arguments[arguments.index("plm_rsh_args") + 1])
    assert ssh[ssh.index("-p") + 1] == "2222" == str(worker["containers"][0]["ports"][0]["containerPort"])
    assert ssh[ssh.index("-i") + 1] == f"{spec['sshAuthMountPath']}/id_rsa"
    assert "-np" not in arguments and arguments[-2:] == ["--config", "/etc/fashion-job/config.yaml"]


@pytest.mark.parametrize("answers", [True, False])
def test_the_mpijob_s_launcher_waits_for_its_workers(answers: bool, tmp_path: Path) -> None:
    launcher = next(c for d in render("mpijob") for t in templates(d) for c in t["spec"]["containers"])
    shell, option, script, name = launcher["command"]
    (tmp_path / "hostfile").write_text("localhost slots=1\nlocalhost slots=1")
    (tmp_path / "fashion-job").write_text('#!/bin/sh\necho "$*"\n')
    (tmp_path / "fashion-job").chmod(0o755)
    with socket.create_server(("localhost", 0)) as worker:
        port = worker.getsockname()[1] if answers else 1
        for there, here in (("/etc/mpi", str(tmp_path)), ("2222", str(port)), ("1800", "1")):
            assert there in script
            script = script.replace(there, here)
        environment = os.environ | {"PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
        done = subprocess.run(
            [shell, option, script, name, "a b", "c"], env=environment, capture_output=True, text=True, timeout=30
        )
    if answers:
        assert (done.returncode, done.stdout) == (0, "mpirun a b c\n")
    else:
        assert done.returncode == 1
        assert done.stderr == "error: waited 1 s for localhost, port 1: see why that worker is pending.\n"
