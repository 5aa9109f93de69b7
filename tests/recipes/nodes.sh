#!/usr/bin/env bash
# Snapshots over nodes that protect one another: nodes whose ranks are killed and whose shared memory is removed lose nothing.
# One machine is taken for several nodes (TR_NODES).      nodes.sh TRAIN
set -uo pipefail
train=$(realpath "$1")
. "$(dirname "$0")/../support/cases.sh"
work=$(mktemp -d "${TMPDIR:-/tmp}/train-nodes-XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
export OMP_NUM_THREADS=1 ASAN_OPTIONS=detect_leaks=0
if ! command -v mpirun >/dev/null; then echo "mpirun is not there: passed over"; exit 0; fi
mpi=(--oversubscribe --bind-to none)
[ "$(id -u)" = 0 ] && mpi+=(--allow-run-as-root)

steps=60
[ -z "${TEST_SANITIZED:-}" ] || steps=40
last=step-$(printf %08d $steps).h5
some_text
cat >a.ini <<INI
[model]
arch = llama
hidden = 64
layers = 2
heads = 4
vocab = 257
context = 128
tokenizer = bytes
dtype = f32
[data]
train = text.txt
sequence = 128
[train]
steps = $steps
batch = 8
micro_batch = 2
lr = 1e-3
seed = 3
[parallel]
data = 4
zero = 2
[checkpoint]
every = 1000
memory_every = 1
redundancy = 3+1
[run]
dir = $work/run
INI

step() { tail -n 1 run/metrics.jsonl 2>/dev/null | sed -nE 's/.*"step":([0-9]+),.*/\1/p'; }
rank_of() { tr '\0' '\n' 2>/dev/null <"/proc/$1/environ" | sed -n 's/^OMPI_COMM_WORLD_RANK=//p'; }
objects() { cat run/.memory run/.memory-* 2>/dev/null; }

# lose NODE...: their shared memory is removed and their ranks are killed, one rank a node
lose() {
    local p line node ranks=()
    for p in /proc/[0-9]*; do
        line=$(tr '\0' ' ' 2>/dev/null <"$p/cmdline") || continue
        case $line in mpirun*|*--supervise*) ;; "$train run $work/"*) for node; do [ "$(rank_of "${p#/proc/}")" = "$node" ] && ranks+=("${p#/proc/}"); done ;; esac
    done
    [ ${#ranks[@]} = $# ] || return 1
    kill -STOP "${ranks[@]}"
    for node; do rm "/dev/shm$(cat "run/.memory$([ "$node" = 0 ] || echo "-$node")")" || return 1; done
    kill -KILL "${ranks[@]}"
}

survives() { # survives NAME REDUNDANCY LOST...: a group of nodes that are lost together, by commas, after another
    local name=$1 code=$2 at n=0 pid group tries
    shift 2
    rm -rf run calm
    mpirun "${mpi[@]}" -n 4 env TR_NODES=4 "$train" run "$work/a.ini" --set checkpoint.redundancy="$code" >out 2>err || flunk "$name: undisturbed" "exit code $?"
    mv run calm
    TR_NODES=4 "$train" run "$work/a.ini" --supervise --set checkpoint.redundancy="$code" >out 2>err &
    pid=$!
    for group; do
        tries=0 at=0
        until [ "$(grep -c 'resumed at step' err)" = $n ] || [ $((tries++)) -gt 1000 ]; do sleep 0.05; done # the loss before this one has been made good
        [ $n = 0 ] || at=$(sed -nE 's/.*resumed at step ([0-9]+) from memory/\1/p' err | tail -n 1)
        until [ "$(step)" -ge $((at + 3)) ] 2>/dev/null || [ $((tries++)) -gt 2000 ]; do sleep 0.02; done
        n=$((n + 1))
        # shellcheck disable=SC2086
        lose ${group//,/ } || { flunk "$name" "nodes $group could not be ended"; kill $pid; wait $pid; return; }
    done
    wait $pid
    expect "$name: exit code" $? 0
    expect "$name: rebuilt" "$(grep -c 'nodes had lost step .*: rebuilt' err) $(grep -c 'resumed at step .* from memory' err) $(grep -c 'starting again from the beginning' err)" "$# $# 0"
    [ -z "$(objects)" ] || flunk "$name" "shared memory is left"
    if cmp -s calm/snapshots/$last run/snapshots/$last && [ "$(ls run/snapshots)" = $last ]; then pass "$name: the bytes of an undisturbed run, nothing from disk"
    else flunk "$name: the bytes of an undisturbed run, nothing from disk" "they differ after step $at, or there are others"; fi
}

survives "3+1, one node and another" 3+1 2 0
survives "2+2, two nodes and two others" 2+2 0,3 1,2

refused() { # refused NAME REDUNDANCY WORDS
    TR_NODES=4 mpirun "${mpi[@]}" -n 4 "$train" run "$work/a.ini" --set run.dir=no --set checkpoint.redundancy="$2" >out 2>err
    expect "$1" "$? $(grep -c '^train: error: ' err) $(grep -c "$3" err)" "2 1 1"
}
refused "sets that do not fit" 2+1 '2 + 1 = 3 nodes, but 4 ranks, 1 a node, are on 4 nodes, which 3 does not divide'
refused "what is no code" 3-1 'such as 3+1'
echo "[  PASSED  ] $good test(s)."
[ $bad = 0 ] || { echo "[  FAILED  ] $bad test(s), listed above"; exit 1; }
