#!/usr/bin/env bash
# Evaluates under Slurm: tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of tools/test.py]
# GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5) and SRUN_ARGS are taken from the environment.
exec "$(dirname "$0")/srun.sh" test.py "$@"
