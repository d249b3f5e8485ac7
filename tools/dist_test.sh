#!/usr/bin/env bash
# Evaluates on several GPUs, or CPU processes where there is no GPU:
#     tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [options of tools/test.py]
# Several nodes: the same command on each, with NNODES, NODE_RANK, MASTER_ADDR and PORT set.
config=$1 checkpoint=$2 processes=$3
exec "$(dirname "$0")/torchrun.sh" test.py "$config" "$processes" "$checkpoint" "${@:4}"
