#!/usr/bin/env bash
# Trains under Slurm: tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of tools/train.py]
# GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5) and SRUN_ARGS are taken from the environment.
exec "$(dirname "$0")/srun.sh" train.py "$@"
