#!/bin/sh
# What runs first in a container: `docker run IMAGE COMMAND …`. Looks at what commonly goes wrong, then becomes the command.
set -eu

usage() {
    cat <<'TEXT'
fashion-job: distributed training with Horovod on Keras 3

  train [-np N] OPTIONS   train, on N ranks (train --help lists the options)
  sweep OPTIONS           search for better options
  launch OPTIONS -- CMD   start ranks over containers, pods or hosts, without ssh
  sshd                    an MPI worker: sshd on port 2222, with the keys in $SSH_AUTH (/etc/ssh-auth)
  doctor                  what of this machine and container is in order
  evaluate, predict, export, fetch    what they do to a run or the data: COMMAND --help
  python, mpirun, ray, bash, sh       as they are

Runs are kept in /runs and data in /data: mount volumes or folders there. Nothing to mount or download:
  docker run --rm --shm-size=1g fashion-job:cpu train -np 2 --recipe fast --dataset garments --weights none --epochs 3
TEXT
}

refuse() {
    echo "error: $*" >&2
    # The first pod that fails ends its Job, and the log of pod 0 is where everyone looks.
    [ "${JOB_COMPLETION_INDEX:-0}" = 0 ] || sleep 5
    exit 2
}

# The value of option $1 among the other arguments, given as "--name value" or "--name=value".
option() {
    wanted=$1
    shift
    value=
    while [ $# -gt 0 ]; do
        case $1 in
        "$wanted") value=${2-} ;;
        "$wanted"=*) value=${1#*=} ;;
        esac
        shift
    done
    echo "$value"
}

check_runs() {
    case ${1:-/runs} in /runs | /runs/* | runs | runs/* | ./runs | ./runs/*) ;; *) return 0 ;; esac
    [ -w /runs ] || refuse "/runs can't be written to: received uid $(id -u) with groups $(id -G), and a folder of uid" \
        "$(stat -c '%u, group %g, mode %a' /runs). Give it to uid 1000 or to group 0 with write permission, or start with --user."
}

# NCCL has its buffers there. Ranks on processors share memory that lies in no folder.
check_ranks_memory() {
    [ "$1" -le 1 ] || [ ! -e /dev/nvidiactl ] || check_shared_memory $(($1 * 32)) "NCCL between $1 ranks"
}

check_shared_memory() {
    [ -d /dev/shm ] || return 0
    mib=$(($(stat -f -c '%b*%S/1048576' /dev/shm)))
    [ "$mib" -ge "$1" ] ||
        echo "warning: /dev/shm is too small for $2: received $mib MiB. Start the container with --shm-size=1g." >&2
}

# The first folder that holds Fashion-MNIST, from $1 down to $2 folders deeper.
holding_data() {
    find "$1" -maxdepth $(($2 + 1)) \( -name 'train-images-idx3-ubyte*' -o -name fashion-mnist_train.csv \) -printf '%h\n' -quit 2>/dev/null || true  # folders that can't be read
}

# Data that was mounted is used where it belongs, and missed where it doesn't: the job would download it instead.
find_data() {
    # What is already there can be read all the same.
    if [ "$XDG_CACHE_HOME" = /data ] && [ ! -w /data ] && [ ! -d /data/fashion-job ]; then
        export XDG_CACHE_HOME=/tmp/cache
    fi
    [ -z "${FASHION_MNIST_DIR-}" ] && [ ! -d /data/fashion-job/fashion-mnist ] || return 0
    if [ "$(holding_data /data 0)" ]; then
        export FASHION_MNIST_DIR=/data
    fi
}

refuse_stray_data() {
    [ -z "${FASHION_MNIST_DIR-}" ] && [ ! -d /data/fashion-job/fashion-mnist ] || return 0
    # Spaces are written as \040 there.
    places=$(awk '$2 !~ "^/((proc|sys|dev|etc|run)(/.*)?|tmp|runs)?$" { print $2 }' /proc/mounts)
    while read -r place; do
        found=$(holding_data "$(printf '%b' "$place")" 2)
        [ -z "$found" ] ||
            refuse "Fashion-MNIST must be in /data: received it in $found. Mount it at /data, or add --env FASHION_MNIST_DIR='$found'."
    done <<TEXT
$places
TEXT
}

wants_real_data() {
    [ -z "$(option --config "$@")$(option --data-dir "$@")" ] && [ "$(option --dataset "$@")" != garments ]
}

train() {
    ranks=1
    case ${1-} in
    -np)
        ranks=${2-}
        shift
        [ $# -eq 0 ] || shift
        ;;
    -np=*)
        ranks=${1#-np=}
        shift
        ;;
    esac
    case $ranks in '' | 0* | *[!0-9]*) refuse "-np needs a number of ranks from 1: received '$ranks'." ;; esac
    case " $* " in *' -np'[' =']* | *' --np'[' =']*) refuse "the number of ranks comes first: train -np N OPTIONS." ;; esac
    case " $* " in *' --help '* | *' -h '* | *' --print-config '*) exec python -m job.train "$@" ;; esac
    check_runs "$(option --run "$@")"
    find_data
    if wants_real_data "$@"; then refuse_stray_data; fi
    [ "$ranks" -gt 1 ] || exec python -m job.train "$@"
    check_ranks_memory "$ranks"
    exec python -m horovod_keras.launch --ranks-per-pod "$ranks" -- python -m job.train "$@"
}

sweep() {
    case " $* " in *' --help '* | *' -h '*) exec python -m tune.sweep "$@" ;; esac
    check_runs "$(option --out "$@")$(option --resume "$@")"
    find_data
    if wants_real_data "$@"; then refuse_stray_data; fi
    check_shared_memory 250 Ray
    exec python -m tune.sweep "$@"
}

# Processes that train in this container.
ranks_here() {
    for process in /proc/[0-9]*; do
        case $(cat "$process/comm" 2>/dev/null) in python*) echo "${process#/proc/}" ;; esac
    done
}

# Not root, and without a key in the image: the host key is made here, and who may come in is told by a mounted folder.
sshd() {
    [ $# -eq 0 ] || refuse "sshd takes no options: received '$*'. SSH_PORT and SSH_AUTH name another port and folder of keys."
    keys=${SSH_AUTH:-/etc/ssh-auth}
    [ -e "$keys/authorized_keys" ] ||
        refuse "sshd lets nobody in without $keys/authorized_keys. Mount a folder with that file there, or name it in SSH_AUTH."
    [ -r "$keys/authorized_keys" ] ||
        refuse "$keys/authorized_keys can't be read: received uid $(id -u), and a file of uid" \
            "$(stat -c '%u, group %g, mode %a' "$keys/authorized_keys" 2>/dev/null)."
    id -un >/dev/null 2>&1 || refuse "sshd needs a user with a name: received uid $(id -u). Start with --user 1000:0."
    find_data
    folder=$(mktemp -d 2>/dev/null) || refuse "/tmp can't be written to. Start the container with --tmpfs /tmp."
    ssh-keygen -q -t ed25519 -N '' -f "$folder/host_key"
    # A session has none of the container's variables but these.
    names='PATH|HOME|XDG_CACHE_HOME|LD_LIBRARY_PATH|(PYTHON|TF_|FASHION_|HOROVOD_|NCCL_|OMPI_MCA_)[A-Z0-9_a-z]*'
    cat >"$folder/config" <<TEXT
Port ${SSH_PORT:-2222}
HostKey $folder/host_key
AuthorizedKeysFile $keys/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
X11Forwarding no
AllowTcpForwarding no
SetEnv $(env | grep -E "^($names)=" | sed 's/["\\]/\\&/g; s/\(.*\)/"\1"/' | tr '\n' ' ')
TEXT
    /usr/sbin/sshd -D -e -f "$folder/config" &
    server=$! stopped='' told=''
    # sshd would leave its sessions to be killed: the ranks in them are to save.
    trap 'stopped=yes told=$(ranks_here); kill -TERM ${told:-$server} 2>/dev/null || true' TERM INT
    wait "$server" || code=$?
    [ -n "$stopped" ] || exit "${code:-0}"
    left=60
    while [ "$(ranks_here)" ] && [ $((left -= 1)) -ge 0 ]; do sleep 1; done
    kill -TERM "$server" 2>/dev/null || true
    [ -z "$told" ] || exit 75
    exit 0
}

# Told to stop, mpirun tells the ranks, and ends with 1 whatever they end with.
run_mpi() {
    mpirun "$@" &
    child=$! told=
    trap 'told=yes; kill -TERM "$child" 2>/dev/null || true' TERM INT
    while :; do
        wait "$child" && code=0 || code=$?
        kill -0 "$child" 2>/dev/null || break
    done
    [ -z "$told" ] || [ "$code" = 0 ] || code=75
    exit "$code"
}

command=${1-}
[ $# -eq 0 ] || shift
case $command in
'' | help | --help | -h) usage ;;
train) train "$@" ;;
sweep) sweep "$@" ;;
sshd) sshd "$@" ;;
launch)
    case " $* " in *' --help '* | *' -h '*) exec python -m horovod_keras.launch "$@" ;; esac
    check_runs "$(option --run "$@")"
    find_data
    if wants_real_data "$@"; then refuse_stray_data; fi
    ranks=$(option --ranks-per-pod "$@")
    case ${ranks:=${HOROVOD_LAUNCH_RANKS_PER_POD:-1}} in *[!0-9]*) ;; *) check_ranks_memory "$ranks" ;; esac
    exec python -m horovod_keras.launch "$@"
    ;;
doctor)
    find_data
    exec python -m job.doctor "$@"
    ;;
evaluate | predict | export | fetch)
    find_data
    if [ "$command" = fetch ] && wants_real_data "$@"; then refuse_stray_data; fi
    exec python -m "job.$command" "$@"
    ;;
python | mpirun | ray)
    find_data
    case " $* " in *' job.train '*) if wants_real_data "$@"; then refuse_stray_data; fi ;; esac
    if [ "$command" = mpirun ]; then
        check_shared_memory 64 MPI
        run_mpi "$@"
    fi
    exec "$command" "$@"
    ;;
bash | sh) exec "$command" "$@" ;;
*) refuse "unknown command: received '$command'. Run the image without a command to see what there is." ;;
esac
