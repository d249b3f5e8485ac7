#!/usr/bin/env bash
# What slurm_train.sh and slurm_test.sh share: srun.sh SCRIPT PARTITION JOB_NAME CONFIG [arguments].
set -euo pipefail
if [[ $# -lt 4 ]]; then
    echo "usage: slurm_train.sh PARTITION JOB_NAME CONFIG [options], or slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options]" >&2
    exit 2
fi
script=$1 partition=$2 job=$3
here=$(cd "$(dirname "$0")" && pwd)
gpus=${GPUS:-8} per_node=${GPUS_PER_NODE:-8}
per_node=$((gpus < per_node ? gpus : per_node))
export PYTHONPATH=$here/..${PYTHONPATH:+:$PYTHONPATH}
# shellcheck disable=SC2086
exec srun --partition "$partition" --job-name "$job" --gres "gpu:$per_node" --ntasks "$gpus" \
    --ntasks-per-node "$per_node" --cpus-per-task "${CPUS_PER_TASK:-5}" --kill-on-bad-exit 1 \
    ${SRUN_ARGS:-} "${PYTHON:-python}" -u "$here/$script" "${@:4}" --launcher slurm
