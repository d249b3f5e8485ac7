#!/usr/bin/env bash
# What dist_train.sh and dist_test.sh share: torchrun.sh SCRIPT CONFIG PROCESSES [arguments].
set -euo pipefail
if [[ $# -lt 3 || ! $3 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: dist_train.sh CONFIG PROCESSES [options], or dist_test.sh CONFIG CHECKPOINT PROCESSES [options]" >&2
    exit 2
fi
script=$1 config=$2 processes=$3
here=$(cd "$(dirname "$0")" && pwd)
if [[ ${NNODES:-1} == 1 && -z ${PORT:-} ]]; then
    rendezvous=(--standalone)  # a free port, so that two trainings can share a machine
else
    rendezvous=(--nnodes "${NNODES:-1}" --node-rank "${NODE_RANK:-0}"
                --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${PORT:-29500}")
fi
# torchrun would give each process one thread.
threads=$(($(nproc) / processes))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
export MKL_NUM_THREADS=${MKL_NUM_THREADS:-$OMP_NUM_THREADS}  # or mmengine says that it sets it to 1
export PYTHONPATH=$here/..${PYTHONPATH:+:$PYTHONPATH}
exec "${PYTHON:-python}" "$here/launch.py" "${rendezvous[@]}" --nproc-per-node "$processes" \
    "$here/$script" "$config" "${@:4}" --launcher pytorch
