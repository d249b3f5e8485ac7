#!/usr/bin/env bash
# Trains on several GPUs, or CPU processes where there is no GPU:
#     tools/dist_train.sh CONFIG PROCESSES [options of tools/train.py]
# Several nodes: the same command on each, with NNODES, NODE_RANK, MASTER_ADDR and PORT set.
# SIGTERM: all processes finish their iteration, one saves a checkpoint for --resume; the exit code is 143.
exec "$(dirname "$0")/torchrun.sh" train.py "$@"
