#!/usr/bin/env bash
# Simulated pipelines as `train plan` tells them: what vocabulary parallelism promises, sizes that cannot be, large models.
#   plan.sh TRAIN     TRAIN: the program. Prints a line for each case and ends like a cmocka program.
set -uo pipefail
train=$(realpath "$1")
work=$(mktemp -d "${TMPDIR:-/tmp}/train-plan-XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
good=0 bad=0

ok() { # ok NAME COMMAND...
    local name=$1
    shift
    if "$@" >/dev/null 2>&1; then good=$((good + 1)); echo "[       OK ] $name"
    else bad=$((bad + 1)); echo "[  FAILED  ] ${name// /_}"; tail -n 3 err; fi
}
plan() { "$train" plan r.ini "$@" >out 2>err; }
refused() { # refused NAME PATTERN ARGS...: exit code 2 and what the line says
    local name=$1 pattern=$2
    shift 2
    plan "$@"
    ok "$name" test $? = 2
    ok "$name: what works" grep -qE "^train: error: .*$pattern" err
}
column() { awk -v s="$2" -v v="$3" -v m="$4" '$1 == s && $2 == v && index($0, " " m " ") { print $(NF - 2 + '"$1"') }' out; }   # 0 largest rank, 1 max/min, 2 work

cat >r.ini <<INI
[model]
preset = llama-7b
dtype = bf16
[data]
sequence = 4096
[train]
steps = 1
batch = 32
micro_batch = 1
[parallel]
pipeline = 8
[device]
flops = 200e12
link = 100e9
INI

plan --vocabularies
ok "vocabularies" test $? = 0
ok "all of them" test "$(grep -cE '^(1f1b|v-half) .*(plain cut|cut by cost|alg1|alg2)' out)" = 32
for s in 1f1b v-half; do
    ok "$s, 256k: the plain cut is uneven" awk "BEGIN { exit !($(column 2 $s 256k 'plain cut') > 1.5) }"
    for a in alg1 alg2; do ok "$s, 256k, $a: work is even" awk "BEGIN { exit !($(column 2 $s 256k $a) <= 1.05) }"; done
    ok "$s, 256k: cutting by cost lies between" awk "BEGIN { w = $(column 2 $s 256k 'cut by cost'); exit !(w < $(column 2 $s 256k 'plain cut') && w > $(column 2 $s 256k alg2)) }"
done
for v in 32k 64k 128k 256k; do
    for a in alg1 alg2; do ok "v-half, $v, $a: memory is even" awk "BEGIN { exit !($(column 1 v-half $v $a) <= 1.05) }"; done
done

plan --schedule picture.svg --set parallel.schedule=v-half --set parallel.vocabulary=alg1
ok "a picture" test $? = 0
ok "as text" test "$(grep -cE '^ +[0-7] [.FfBbWwST]{120}$' out)" = 8
ok "as SVG" test "$(grep -c '<rect class=' picture.svg)" = $((8 * 32 * 8))
ok "labelled" grep -q '^simulated, not run' out
plan --schedule --set model.preset=llama-405b --set parallel.pipeline=64 --set parallel.data=256 --set train.batch=16384 --set parallel.vocabulary=alg2 --set parallel.zero=1
ok "405B over 16,384 ranks" grep -q '= 16384 ranks (data x pipeline), 405.85 G parameters' out
plan --schedule --set model.preset=llama-70b --set parallel.pipeline=16 --set parallel.schedule=interleaved
ok "70B" grep -q '68.98 G parameters' out
plan --json --set memory.budget=80G
ok "JSON" test $? = 0
ok "JSON of each rank" grep -q '^{"simulated":true,"ranks":8,"peak":[0-9]*,.*"fits":true,"total":\[\([0-9]*,\)\{7\}[0-9]*\]' out
plan --set memory.budget=20G
ok "a budget that is too small" test $? = 3
ok "what saves memory" grep -q 'memory budget 20.00 GB .*schedule v-half' err

refused "search of a pipeline" "leave --search out" --search
refused "more stages than layers" "set parallel.pipeline to at most 32" --schedule --set parallel.pipeline=33
refused "more stages than layers, two a rank" "set parallel.pipeline to at most 16" --schedule --set parallel.pipeline=17 --set parallel.schedule=v-half
refused "interleaving that does not divide" "use 24 or 32, or 1f1b" --schedule --set parallel.schedule=interleaved --set train.batch=30
refused "micro-batches that cannot be dealt" "multiple of 3" --schedule --set parallel.data=3
plan --schedule --set train.batch=4
ok "fewer micro-batches than stages: told" grep -q '^note: 4 micro-batches for 8 ranks' out

echo "[  PASSED  ] $good test(s)."
[ $bad = 0 ] || { echo "[  FAILED  ] $bad test(s), listed above"; exit 1; }
