#!/usr/bin/env bash
# Trains on two nodes that are two network namespaces, joined by a cable (a veth pair):
#     tests/two_nodes.sh CONFIG PROCESSES_A_NODE [options of tools/train.py]
# Needs root and `ip`; where namespaces cannot be made it exits with 77 and says why.
set -uo pipefail
config=$1 processes=$2
tools=$(cd "$(dirname "$0")/../tools" && pwd)
nodes=("cmt${$}a" "cmt${$}b")

leave() {
    for node in "${nodes[@]}"; do
        ip netns pids "$node" 2>/dev/null | xargs -r kill -KILL
        ip netns del "$node" 2>/dev/null
    done
}
trap leave EXIT

for i in 0 1; do
    ip netns add "${nodes[i]}" || { echo 'network namespaces are not allowed here'; exit 77; }
done
ip link add veth0 netns "${nodes[0]}" type veth peer name veth0 netns "${nodes[1]}" \
    || { echo 'veth pairs are not allowed here'; exit 77; }
for i in 0 1; do
    ip -n "${nodes[i]}" addr add "10.77.0.$((i + 1))/24" dev veth0
    ip -n "${nodes[i]}" link set veth0 up
    ip -n "${nodes[i]}" link set lo up
done

export NNODES=2 MASTER_ADDR=10.77.0.1 PORT=29500 GLOO_SOCKET_IFNAME=veth0
for i in 0 1; do
    NODE_RANK=$i ip netns exec "${nodes[i]}" "$tools/dist_train.sh" "$config" "$processes" "${@:3}" &
    pids[i]=$!
done
status=0
for pid in "${pids[@]}"; do
    wait "$pid" || status=$?
done
exit $status
