#!/usr/bin/env bash
# Two ranks in two network namespaces with a veth pair between them, over TCP, as two hosts would: the losses of one rank, and a
# file that one host lacks.
#   hosts.sh TRAIN      Where namespaces are not permitted, or mpirun is missing, it says so and passes over everything.
set -uo pipefail
train=$(realpath "$1")
. "$(dirname "$0")/../support/cases.sh"
for t in mpirun ip unshare; do command -v $t >/dev/null || { echo "$t is not there: runs across hosts are not tested"; exit 77; }; done
work=$(mktemp -d "${TMPDIR:-/tmp}/train-hosts-XXXXXX")
a=train$$a b=train$$b
clean() {
    ip netns del "$a" 2>/dev/null
    ip netns del "$b" 2>/dev/null
    rm -rf "$work"
}
trap clean EXIT
cd "$work" || exit 1
{ ip netns add "$a" && ip netns add "$b" && ip link add "v$a" type veth peer name "v$b" && ip link set "v$a" netns "$a" && ip link set "v$b" netns "$b" &&
    ip netns exec "$a" ip addr add 10.83.7.1/24 dev "v$a" && ip netns exec "$b" ip addr add 10.83.7.2/24 dev "v$b" && unshare -u true; } 2>why ||
    { echo "network namespaces are not permitted here: runs across hosts are not tested ($(tail -n 1 why))"; exit 77; }
for n in "$a" "$b"; do ip netns exec "$n" ip link set lo up; ip netns exec "$n" ip link set "v$n" up; done
# What mpirun takes for ssh: the second namespace, under a host name of its own.
cat >agent <<A
#!/bin/sh
shift
exec ip netns exec $b unshare -u sh -c 'hostname two; exec sh -c "\$0"' "\$*"
A
chmod +x agent
export OMP_NUM_THREADS=1 ASAN_OPTIONS=detect_leaks=0 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
hosts() { # hosts ARGUMENTS...: of the program on both hosts
    timeout 120 ip netns exec "$a" unshare -u sh -c 'hostname one; exec "$@"' sh \
        mpirun --oversubscribe --bind-to none -x OMP_NUM_THREADS -x ASAN_OPTIONS --mca plm_rsh_agent "$work/agent" --mca btl tcp,self --mca pml ob1 \
        --mca oob_tcp_if_include 10.83.7.0/24 --mca btl_tcp_if_include 10.83.7.0/24 --host 10.83.7.1:1,10.83.7.2:1 -n 2 --wdir "$work" "$@" >out 2>err
}
losses() { sed -E 's/.*"loss":([^,]*),.*"grad_norm":([^,]*),.*/\1 \2/' "$1/metrics.jsonl"; }
some_text
cat >a.ini <<INI
[model]
arch = llama
hidden = 32
layers = 2
heads = 4
intermediate = 64
vocab = 257
context = 64
tokenizer = bytes
dtype = f32
[data]
train = text.txt
sequence = 48
[train]
steps = 3
batch = 4
micro_batch = 1
lr = 1e-3
seed = 3
[run]
threads = 1
INI
"$train" run a.ini --set run.dir=one >out 2>err || flunk "one rank" "it failed"
for z in 2 3; do
    hosts "$train" run a.ini --set parallel.data=2 --set parallel.zero=$z --set run.dir=two-$z || flunk "two hosts, stage $z" "it failed"
    if [ "$(losses one)" = "$(losses two-$z)" ]; then pass "two hosts, stage $z: losses and norms"; else flunk "two hosts, stage $z: losses and norms" "$(losses two-$z)"; fi
done
sent=$(ip netns exec "$a" cat "/sys/class/net/v$a/statistics/tx_bytes") told=$(sed -E 's/.*"sent":([0-9]*).*/\1/' two-2/metrics.jsonl two-3/metrics.jsonl | awk '{ s += $1 } END { print s }')
if [ "$sent" -ge "$told" ] && [ "$told" -gt 0 ]; then pass "bytes went over the wire"; else flunk "bytes went over the wire" "$sent, of $told told"; fi
hosts sh -c '[ $OMPI_COMM_WORLD_RANK = 0 ] || cd /; exec "$0" "$@"' "$train" run "a.ini" --set parallel.data=2 --set run.dir=none
code=$?
if [ $code = 2 ] && [ "$(grep -c '^train: error: ' err)" = 1 ]; then pass "a file that one host lacks"; else flunk "a file that one host lacks" "exit code $code"; fi
echo "[  PASSED  ] $good test(s)."
[ $bad = 0 ] || { echo "[  FAILED  ] $bad test(s), listed above"; exit 1; }
