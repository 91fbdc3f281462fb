"""The CPU image, built for real and run as people run it: not root, on a read-only root file system."""

import importlib.metadata
import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.docker.containers import READ_ONLY, ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2700)]

LARGEST = 1.6e9  # bytes
SMALL = ["--recipe=fast", "--dataset=garments", "--weights=none", "--resolution=32"]
SMALL += ["--limit-train=640", "--limit-eval=100"]
NETWORK = "ci0"


def address(last: int) -> list[str]:
    """Options for a container with an address of its own in the builder's network."""
    return ["--network", NETWORK, "--ip", f"10.89.78.{last}"]


def result(run: Path) -> dict[str, float]:
    return json.loads((run / "result.json").read_text())


def test_it_is_small_enough(podman, cpu_image) -> None:
    assert int(podman("image", "inspect", "--format", "{{.Size}}", cpu_image).stdout) <= LARGEST


def test_its_labels_tell_version_revision_source_and_licence(podman, cpu_image) -> None:
    labels = json.loads(podman("image", "inspect", "--format", "{{json .Labels}}", cpu_image).stdout)
    prefix = "org.opencontainers.image."
    assert {f"{prefix}{name}" for name in ("version", "revision", "source", "licenses")} <= labels.keys()
    assert labels[f"{prefix}licenses"] == "Apache-2.0"


def test_nothing_in_it_compiles_or_installs(podman, cpu_image) -> None:
    programs = "cc gcc g++ cpp clang ld as make cmake nvcc mpicc mpic++ mpicxx h2ph"
    programs += " apt apt-get dpkg pip pip3 conda uv cpan"
    script = f"for each in {programs}; do command -v $each; done; true"
    assert podman("run", "--rm", cpu_image, "sh", "-c", script).stdout == ""
    for module in ("pip", "ensurepip"):
        assert f"No module named {module}" in podman("run", "--rm", cpu_image, "python", "-m", module).stderr


def test_no_headers_and_no_keys_are_in_it(podman, cpu_image) -> None:
    """But for the sources of the C++ operations: their digest tells that the compiled library belongs to them."""
    unwanted = ("*.h", "*.hpp", "*.ph", "*.pyx", "ssh_host_*", "id_rsa*", "id_ed25519*")
    names = " -o ".join(f"-name '{each}'" for each in unwanted)
    script = f"find / -xdev -path /opt/fashion-job -prune -o \\( {names} \\) -print 2>/dev/null; true"
    assert podman("run", "--rm", cpu_image, "sh", "-c", script).stdout == ""


def test_without_a_command_it_tells_what_there_is(podman, cpu_image) -> None:
    done = podman("run", "--rm", *READ_ONLY, cpu_image)
    assert done.returncode == 0
    assert "train [-np N]" in done.stdout


def test_the_doctor_is_content(podman, cpu_image) -> None:
    done = podman("run", "--rm", *READ_ONLY, "--shm-size=1g", cpu_image, "doctor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    findings = {each["subject"]: each for each in json.loads(done.stdout)["findings"]}
    assert findings["Two-rank all-reduce"]["found"] == "right"
    assert findings["C++ operations"]["status"] == "ok", findings["C++ operations"]
    assert "mpi yes" in findings["Horovod"]["found"].lower() and "gloo yes" in findings["Horovod"]["found"].lower()


@pytest.mark.parametrize("user", [(), ("--user", "123456:0", "--passwd=false")], ids=["uid 1000", "any uid of group 0"])
def test_two_ranks_train_on_the_drawn_data(podman, cpu_image, tmp_path, user) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    os.chown(runs, 1000, 0)
    runs.chmod(0o775)
    command = ["train", "-np", "2", *SMALL, "--epochs", "1", "--run", "/runs/train"]
    done = podman("run", "--rm", *READ_ONLY, *user, "--volume", f"{runs}:/runs", cpu_image, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 0 <= result(runs / "train")["test_accuracy"] <= 1
    assert (runs / "train/model.keras").stat().st_uid == (123456 if user else 1000)


def test_two_containers_train_over_the_network_without_ssh(podman, cpu_image, runs, containers) -> None:
    command = ["launch", "--", "python", "-m", "job.train", *SMALL, "--epochs", "1", "--run", "/runs/train"]
    for pod, last in enumerate((31, 32)):
        variables = {
            "PODS": 2,
            "POD_INDEX": pod,
            "COORDINATOR": "10.89.78.31",
            "SECRET": "only for this test, and long enough",
        }
        environment = [f"--env=HOROVOD_LAUNCH_{name}={value}" for name, value in variables.items()]
        options = [*READ_ONLY, *address(last), *environment, "--volume", f"{runs}:/runs"]
        containers.append(podman.start(*options, cpu_image, *command))
    assert [podman.exit_code(each) for each in containers] == [0, 0], "".join(map(podman.log, containers))
    assert "2 rank(s) on 2 pod(s)" in podman.log(containers[0])
    assert json.loads((runs / "train/environment.json").read_text())
    assert result(runs / "train")


def test_mpirun_trains_over_ssh_as_uid_1000(podman, cpu_image, runs, tmp_path, containers) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keys / "id_rsa"], check=True)
    (keys / "id_rsa.pub").rename(keys / "authorized_keys")
    for each in (keys, keys / "id_rsa"):
        os.chown(each, 1000, 0)
    shared = [*READ_ONLY, "--shm-size=256m", "--volume", f"{runs}:/runs", "--volume", f"{keys}:/etc/ssh-auth:ro"]
    for last in (41, 42):
        containers.append(podman.start(*shared, *address(last), cpu_image, "sshd"))
    for each in containers:
        assert podman.log_has(each, "Server listening on 0.0.0.0 port 2222", 20), podman.log(each)
    unknown_host = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    ssh = f"-F none -p 2222 -i /etc/ssh-auth/id_rsa {unknown_host}"
    mpirun = ["mpirun", "--host", "10.89.78.41:1,10.89.78.42:1", "--bind-to", "none", "--mca", "plm_rsh_args", ssh]
    job = ["python", "-m", "job.train", *SMALL, "--epochs", "1", "--run", "/runs/mpi"]
    done = podman("run", "--rm", *shared, *address(43), cpu_image, *mpirun, *job)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "on 2 rank(s)" in done.stdout
    assert result(runs / "mpi")


def test_sigterm_saves_and_the_same_command_goes_on(podman, cpu_image, runs, containers) -> None:
    command = ["train", "-np", "2", *SMALL, "--epochs", "4", "--run", "/runs/train"]
    options = [*READ_ONLY, "--volume", f"{runs}:/runs"]
    containers.append(podman.start(*options, cpu_image, *command))
    assert podman.log_has(containers[0], "epoch 1/4"), podman.log(containers[0])
    podman("stop", "--time", "60", containers[0])
    assert podman.exit_code(containers[0]) == 75, podman.log(containers[0])
    assert list((runs / "train/checkpoints").glob("step-*"))
    again = podman("run", "--rm", *options, cpu_image, *command)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "epoch 1/4" not in again.stdout and "epoch 4/4" in again.stdout
    epochs = [json.loads(line)["epoch"] for line in (runs / "train/metrics.jsonl").read_text().splitlines()]
    assert epochs == sorted(set(epochs)) and len(epochs) == 4


SAVER = """
import signal, sys, time
def save(*_):
    time.sleep(8)
    print('saved', flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
print('up', flush=True)
time.sleep(99)
"""


def test_mpirun_that_is_stopped_lets_its_ranks_save(podman, cpu_image, containers) -> None:
    command = ["mpirun", "-np", "2", "--oversubscribe", "python", "-c", SAVER]
    containers.append(podman.start(*READ_ONLY, "--shm-size=256m", cpu_image, *command))
    assert podman.log_has(containers[0], "up"), podman.log(containers[0])
    podman("stop", "--time", "60", containers[0])
    assert podman.exit_code(containers[0]) == 75
    assert podman.log(containers[0]).count("saved") == 2


def test_an_ssh_worker_that_is_stopped_lets_its_ranks_save(podman, cpu_image, tmp_path, containers) -> None:
    (tmp_path / "authorized_keys").touch()
    tmp_path.chmod(0o755)
    options = [*READ_ONLY, "--volume", f"{tmp_path}:/etc/ssh-auth:ro"]
    containers.append(podman.start(*options, cpu_image, "sshd"))
    assert podman.log_has(containers[0], "Server listening", 20), podman.log(containers[0])
    # As a session's, but that its words come to the container's log.
    podman("exec", "--detach", containers[0], "sh", "-c", f'exec python -c "{SAVER}" > /proc/1/fd/1')
    assert podman.log_has(containers[0], "up"), podman.log(containers[0])
    podman("stop", "--time", "60", containers[0])
    assert podman.exit_code(containers[0]) == 75
    assert "saved" in podman.log(containers[0])


INSIDE = {
    "job": ["tests/job/data", "tests/job/model", "tests/job/run", "tests/job/test_predict.py"],
    "ranks": ["tests/horovod_keras"],
    "search": ["tests/tune/test_space.py", "tests/tune/test_records.py", "tests/tune/test_report.py"],
}
"""What is tested inside the image: every part of it, but for what needs a host of its own."""


@pytest.mark.parametrize("part", INSIDE)
def test_tests_pass_inside(podman, cpu_image, tmp_path, part) -> None:
    """What was stripped from the packages is not missed: pytest alone is brought along."""
    brought = tmp_path / "pytest"
    for name in ("pytest", "pluggy", "iniconfig", "pytest-timeout", "hypothesis", "sortedcontainers"):
        distribution = importlib.metadata.distribution(name)
        for file in distribution.files or []:
            source = Path(str(distribution.locate_file(file)))
            if ".." not in file.parts and source.suffix != ".pyc" and source.is_file():
                target = brought / file
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read_bytes())
    mounts = [f"--volume={ROOT / name}:/test/{name}:ro" for name in ("tests", "pyproject.toml")]
    mounts.append(f"--volume={brought}:/pytest:ro")
    options = [*READ_ONLY, *mounts, "--workdir=/test", "--env=PYTHONPATH=/pytest", "--env=FASHION_MNIST_DIR="]
    pytest_command = ["python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *INSIDE[part], "-m", "not slow"]
    done = podman("run", "--rm", "--shm-size=1g", *options, cpu_image, *pytest_command, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


def test_a_small_search_runs_inside(podman, cpu_image, runs) -> None:
    command = ["sweep", *SMALL, "--trials=2", "--epochs=1", "--out=/runs/search"]
    options = [*READ_ONLY, "--shm-size=1g", "--volume", f"{runs}:/runs"]
    done = podman("run", "--rm", *options, cpu_image, *command, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {"trials.parquet", "best.yaml", "report.html", "sweep.yaml"} <= {
        each.name for each in (runs / "search").iterdir()
    }


def test_a_search_is_handed_in_as_kuberay_does_it(podman, cpu_image, runs) -> None:
    search = ["python", "-m", "tune.sweep", "--address=auto", *SMALL, "--trials=1", "--epochs=1", "--out=/runs/handed"]
    start = "ray start --head --num-cpus=2 --disable-usage-stats"
    script = f"{start} && ray job submit --address=http://127.0.0.1:8265 -- {' '.join(search)}"
    options = [*READ_ONLY, "--shm-size=1g", "--volume", f"{runs}:/runs", "--env=RAY_AUTH_MODE=token"]
    options.append(f"--env=RAY_AUTH_TOKEN={'5' * 64}")
    done = podman("run", "--rm", *options, cpu_image, "sh", "-c", script, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (runs / "handed/report.html").exists()


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line)
    return line


def test_an_unknown_command_is_one_line(podman, cpu_image) -> None:
    assert one_line(podman("run", "--rm", cpu_image, "trian")).startswith("error: unknown command: received 'trian'.")


@pytest.mark.parametrize("command", ["train", "sweep", "launch"])
def test_runs_that_cannot_be_written_are_one_line(podman, cpu_image, tmp_path, command) -> None:
    done = podman("run", "--rm", *READ_ONLY, "--volume", f"{tmp_path}:/runs", cpu_image, command)
    assert one_line(done).startswith("error: /runs can't be written to: received uid 1000")


def test_data_in_the_wrong_place_is_one_line(podman, cpu_image, tmp_path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "train-images-idx3-ubyte.gz").touch()
    done = podman("run", "--rm", *READ_ONLY, "--volume", f"{tmp_path}:/datasets/fashion:ro", cpu_image, "train")
    assert one_line(done).startswith("error: Fashion-MNIST must be in /data: received it in /datasets/fashion.")


def test_data_in_the_right_place_is_found(podman, cpu_image, fashion_mnist_dir) -> None:
    command = ["run", "--rm", *READ_ONLY, "--volume", f"{fashion_mnist_dir}:/data:ro", cpu_image, "doctor", "--json"]
    findings = {each["subject"]: each for each in json.loads(podman(*command).stdout)["findings"]}
    assert findings["Fashion-MNIST"]["found"] == "60,000 + 10,000 images in /data"


@pytest.mark.parametrize("command", [["sweep", "--out=/runs/search", "--trials=0"], ["mpirun", "--version"]])
def test_too_little_shared_memory_is_one_line(podman, cpu_image, runs, command) -> None:
    done = podman("run", "--rm", *READ_ONLY, "--shm-size=1m", "--volume", f"{runs}:/runs", cpu_image, *command)
    (line,) = (line for line in done.stderr.splitlines() if "/dev/shm" in line)
    who = {"sweep": "Ray", "mpirun": "MPI"}[command[0]]
    assert line.startswith(f"warning: /dev/shm is too small for {who}: received 1 MiB.")
