#!/usr/bin/env bash
# Train on a Cloud TPU pod slice, from your own machine, with gcloud:
#
#     export TPU=hidden ZONE=us-central1-a TYPE=v5litepod-16 RUNTIME=v2-alpha-tpuv5-lite
#     export NFS=10.0.0.2:/share SECRET=$HOME/hidden.secret
#     scripts/tpu_pod.sh run configs/cifar10.py --workdir /mnt/shared/runs/a --batch-size 512
#     scripts/tpu_pod.sh fetch /mnt/shared/runs/a
#     scripts/tpu_pod.sh delete
#
# run does all that is needed, again and again until the training is done:
#     create      request the slice (SPOT=1: a spot one) and wait until it is there
#     setup       install this commit on all workers, mount the shared storage, copy the secret
#     push FILE   copy a file or folder to the shared storage (data sets, public pools)
#     train ...   start train.py on all workers and wait for it
#     stop        send SIGTERM: it saves and ends
#     fetch DIR   copy a run folder from the shared storage to this folder
#     delete      delete the slice; the shared storage stays
#
# TPU      name of the slice and of its queued resource
# ZONE     where; TYPE and RUNTIME: gcloud compute tpus accelerator-types list --zone=ZONE, and
#          v2-alpha-tpuv6e (v6e), v2-alpha-tpuv5 (v5p), v2-alpha-tpuv5-lite (v5e) or
#          tpu-ubuntu2204-base (v4 and older)
# NFS      HOST:/PATH that the workers can mount, such as a Filestore share. Run folders are on it:
#          the disks of the workers are lost with them.
# SECRET   the secret file on this machine, made if it is missing. Every worker gets a copy on its
#          own disk, mode 0600, none is on the shared storage. Without this file a run cannot go on.
#          This is for one owner; with several clients give train.py a --secret-file of your own.
# SPOT     1 for spot capacity (default), 0 for on-demand
# PROJECT  gcloud's default
#
# gcloud reaches several workers at once through ssh-agent: ssh-add ~/.ssh/google_compute_engine
# This script's options were checked against gcloud 528's help; nobody has run it on a TPU yet.
set -euo pipefail

TPU=${TPU:-}
ZONE=${ZONE:-}
TYPE=${TYPE:-v5litepod-16}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}
NFS=${NFS:-}
SECRET=${SECRET:-}
SPOT=${SPOT:-1}
shared=/mnt/shared
here=$(cd "$(dirname "$0")/.." && pwd)

die() {
    echo "error: $*" >&2
    exit 2
}

tpus() {
    gcloud compute tpus "$@" --zone="$ZONE" ${PROJECT:+--project="$PROJECT"}
}

# A command on every worker. Its exit code is that of the first worker that failed.
everywhere() {
    tpus tpu-vm ssh "$TPU" --worker=all --command="$1"
}

state() {
    tpus queued-resources describe "$TPU" --format='value(state.state)' 2>/dev/null || true
}

create() {
    local spot=()
    [ "$SPOT" = 1 ] && spot=(--spot)
    case "$(state)" in
    '')
        tpus queued-resources create "$TPU" --node-id="$TPU" --accelerator-type="$TYPE" \
            --runtime-version="$RUNTIME" ${spot[@]+"${spot[@]}"}
        ;;
    ACTIVE) ;;
    FAILED | SUSPENDING | SUSPENDED)
        remove # a request is served once
        create
        return
        ;;
    esac
    while :; do
        case "$(state)" in
        ACTIVE) return ;;
        FAILED | SUSPEND*) die "the request for $TPU failed: gcloud compute tpus" \
            "queued-resources describe $TPU --zone=$ZONE" ;;
        esac
        echo "waiting for $TPU: $(state)"
        sleep "${PAUSE:-60}"
    done
}

remove() {
    tpus queued-resources delete "$TPU" --force --quiet
}

make_secret() {
    [ -e "$SECRET" ] && return
    "${PYTHON:-python3}" - "$SECRET" <<'END' || die "cannot write $SECRET"
import os, secrets, sys
with open(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
    file.write(secrets.token_hex(32) + "\n")
END
}

setup() {
    local package
    package=$(mktemp -d)
    git -C "$here" archive --format=tar.gz --output="$package/project.tar.gz" HEAD
    tpus tpu-vm scp "$package/project.tar.gz" "$TPU":project.tar.gz --worker=all
    rm -r "$package"
    # Ubuntu 22.04 brings Python 3.10; uv brings a newer one.
    everywhere "set -e
        mkdir -p project && tar xzf project.tar.gz -C project
        python3 -m pip install --quiet --user uv
        [ -d venv ] || python3 -m uv venv --quiet --python 3.12 venv
        python3 -m uv pip install --quiet --python venv/bin/python 'jax[tpu]' -e 'project[demo]'
        sudo mkdir -p $shared
        command -v mount.nfs >/dev/null || sudo apt-get install --yes --quiet nfs-common
        mountpoint -q $shared || sudo mount -t nfs -o hard $(printf %q "$NFS") $shared
        [ -w $shared ] || sudo chown \"\$(id -u)\" $shared
        rm -f secret && umask 077 && touch secret"
    make_secret
    tpus tpu-vm scp "$SECRET" "$TPU":secret --worker=all
    everywhere "chmod 600 secret"
}

push() {
    tpus tpu-vm scp "$1" "$TPU":"$shared/" --worker=0 --recurse
}

# The process id is kept so that `stop` finds it, and the next start what a lost connection left.
train() {
    [ $# -gt 0 ] || die "no config is given; for example: train configs/cifar10.py --workdir ..."
    local secret=' --secret-file ~/secret'
    case " $* " in *' --secret-file'*) secret= ;; esac
    trap 'stop || true; exit 75' INT TERM
    everywhere "cd project
        old=\$(cat ~/pid 2>/dev/null || true)
        if [ -n \"\$old\" ] && ps -p \"\$old\" -o args= | grep -q train.py; then kill -9 \"\$old\"; fi
        echo \$\$ >~/pid
        exec ~/venv/bin/python train.py$(printf ' %q' "$@")$secret --coordinator auto"
}

stop() {
    everywhere "kill -TERM \"\$(cat ~/pid)\""
}

fetch() {
    tpus tpu-vm scp "$TPU":"$1" . --worker=0 --recurse
}

run() {
    local code failures=0 began
    while :; do
        "$0" create
        began=$SECONDS
        code=0
        "$0" setup || code=255
        if [ "$code" -eq 0 ]; then
            "$0" train "$@" || code=$?
        fi
        case "$code" in
        0) return ;;
        2) die "train.py refused its input; see above" ;;
        esac
        echo "ended with exit code $code; the slice is now: $(state)"
        # 75 may hide the fault of a process whose end the others noticed: no endless loop.
        if [ "$(state)" = ACTIVE ] && [ $((SECONDS - began)) -lt "${MIN_SECONDS:-600}" ]; then
            failures=$((failures + 1))
            [ "$failures" -lt 3 ] || die "ended so soon after the start three times; see above"
        else
            failures=0
        fi
        sleep "${PAUSE:-60}" # a slice that was taken away is ACTIVE for a moment more
    done
}

command=${1:-}
[ $# -gt 0 ] && shift
case "$command" in
create | setup | push | train | stop | fetch | delete | run) ;;
*)
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
    [ "$command" = --help ] && exit 0
    exit 2
    ;;
esac
[ -n "$TPU" ] || die "TPU is not set; give the slice a name"
[ -n "$ZONE" ] || die "ZONE is not set; for example us-central1-a"
case "$command" in
setup | run)
    [ -n "$NFS" ] || die "NFS is not set; run folders need storage that all workers see"
    [ -n "$SECRET" ] || die "SECRET is not set; name the file on this machine that keeps it"
    ;;
push | fetch) [ $# -eq 1 ] || die "$command takes one path" ;;
delete) command=remove ;;
esac
"$command" "$@"
