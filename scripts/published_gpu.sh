#!/usr/bin/env bash
# CIFAR-10 with ResNet-18 by the published recipe of 200 epochs, on a machine with a GPU that reaches
# no package index.
#
#     python3 -m pip freeze > installed.txt                        # there: what it has already
#     scripts/published_gpu.sh pack gpu-pack installed.txt         # here
#     scripts/published_gpu.sh run gpu-pack runs/published         # there, beside a copy of gpu-pack
#
# pack FOLDER INSTALLED          This commit, the wheels that INSTALLED lacks, CIFAR-10 and the public
#                                pool, as FOLDER/part.* of 58 MB each. Needs the Python version of the
#                                GPU machine, a package index, and what README.md prepares: the data
#                                set cifar10 and data/photos32.npy.
# run FOLDER WORKDIR [OPTIONS]   Unpack it once, then train and score inside beside vanilla, and cross
#                                beside mixup. OPTIONS go to train.py; without any it computes in
#                                bfloat16. It goes on where it was when started again.
#
# The card, its driver and the tables go to WORKDIR/results.md. At the speed that docs/results.md has of
# one H100, 200 epochs of inside alone take about five minutes. Nobody has run it on a GPU yet; on a
# CPU without jax's index it was tried with other options.
set -euo pipefail

die() {
    echo "error: $*" >&2
    exit 2
}

# Names of packages as pip compares them, of lines that begin with them.
names() {
    sed -E 's/^([A-Za-z0-9._-]+).*/\1/' | tr 'A-Z_.' 'a-z--' | sort -u
}

pack() { # FOLDER INSTALLED
    local here folder installed stage sets lacking wheel name
    [ -f "$2" ] || die "$2 is no file: give what python3 -m pip freeze prints on the GPU machine"
    installed=$(realpath "$2")
    folder=$(realpath -m "$1")
    here=$(cd "$(dirname "$0")/.." && pwd)
    cd "$here"
    [ -z "$(git status --porcelain --untracked-files=no)" ] ||
        die "there are changes that are not committed, and results name a commit: commit them first"
    sets=$(python3 -c 'from instahide_jax.data.tfds_io import data_root; print(data_root(None))')
    for needed in "$sets/cifar10" data/photos32.npy; do
        [ -e "$needed" ] || die "$needed is missing: prepare it as README.md says"
    done
    stage=$(mktemp -d)
    trap "rm -rf '$stage'" EXIT
    mkdir "$stage/code" "$stage/wheels" "$stage/tfds"
    git archive HEAD | tar -x -C "$stage/code"
    mkdir "$stage/code/data"
    cp data/photos32.* "$stage/code/data"
    cp -r "$sets/cifar10" "$stage/tfds"
    python3 --version > "$stage/python"
    grep -E '^[A-Za-z0-9._-]+==' "$installed" > "$stage/constraints" || true
    python3 -m pip wheel --quiet --disable-pip-version-check -w "$stage/wheels" -c "$stage/constraints" "$stage/code[tensorboard]"
    rm -rf "$stage"/code/build "$stage"/code/*.egg-info
    for wheel in "$stage"/wheels/*.whl; do
        name=$(basename "${wheel%%-*}" | names)
        if [ "$name" = instahide-jax ] || names < "$installed" | grep -qxF "$name"; then
            rm "$wheel"
        fi
    done
    mkdir -p "$folder"
    rm -f "$folder"/part.*
    tar -c -C "$stage" code wheels tfds python | split -b 58M - "$folder/part."
    lacking=$(find "$stage/wheels" -name '*.whl' | wc -l)
    echo "$folder: $(du -sh "$folder" | cut -f1) in $(find "$folder" -name 'part.*' | wc -l) parts, with $lacking packages"
}

run() { # FOLDER WORKDIR [OPTIONS]
    local there workdir wanted
    [ -e "$1/part.aa" ] || die "$1/part.aa is missing: copy the folder that pack made"
    there=$(cd "$1" && pwd)/unpacked
    mkdir -p "$2"
    workdir=$(cd "$2" && pwd)
    shift 2
    if [ ! -e "$there/ready" ]; then
        rm -rf "$there"
        mkdir "$there"
        cat "$there"/../part.* | tar -x -C "$there"
        wanted=$(cat "$there/python")
        [ "${wanted%.*}" = "$(python3 --version | sed 's/\.[^.]*$//')" ] ||
            die "the packages are for $wanted and this is $(python3 --version): pack with the Python of this machine"
        python3 -m pip install --quiet --disable-pip-version-check --no-index --no-deps --target "$there/site" "$there"/wheels/*.whl
        touch "$there/ready"
    fi
    cd "$there/code"
    export PYTHONPATH=$there/site:$there/code TFDS_DATA_DIR=$there/tfds
    { nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null || echo "nvidia-smi names no GPU"; } | tee "$workdir/results.md"
    local variants
    for variants in "inside vanilla" "cross mixup"; do
        # shellcheck disable=SC2086
        python3 benchmarks/results.py configs/cifar10.py $variants --at-once 2 --workdir "$workdir" -- "${@:---encoder.dtype=bfloat16}" |
            tee -a "$workdir/results.md"
    done
}

case "${1:-}:$#" in
pack:3) pack "$2" "$3" ;;
run:[3-9] | run:[1-9][0-9]) run "${@:2}" ;;
*)
    sed -n '/^set /q;2,$s/^# \{0,1\}//p' "$0" >&2
    [ "${1:-}" = --help ] || exit 2
    ;;
esac
