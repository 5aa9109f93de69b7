#!/usr/bin/env bash
# Supervised runs: ranks that are killed at random moments are started again and end with the bytes of an undisturbed run.
#   supervise.sh TRAIN
set -uo pipefail
train=$(realpath "$1")
. "$(dirname "$0")/../support/cases.sh"
work=$(mktemp -d "${TMPDIR:-/tmp}/train-supervise-XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
export OMP_NUM_THREADS=1 ASAN_OPTIONS=detect_leaks=0

# Long enough to be killed some times on a fast machine.
steps=240
[ -z "${TEST_SANITIZED:-}" ] || steps=60
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
[optimizer]
name = adamw
[checkpoint]
every = 2
keep = 3
[run]
dir = run
INI

# Processes of the run that train, with 1 also the keeper of its memory: neither the supervisor nor mpirun, nor one that is being
# forked by them.
victims() {
    local p line
    for p in /proc/[0-9]*; do
        line=$(tr '\0' ' ' 2>/dev/null <"$p/cmdline") || continue
        case $line in *mpirun*|*--supervise*) ;; "$train run $work/"*) echo "${p#/proc/}" ;; "train keep $work/run "*) [ "${1:-1}" = 0 ] || echo "${p#/proc/}" ;; esac
    done
}
step() { tail -n 1 run/metrics.jsonl 2>/dev/null | sed -nE 's/.*"step":([0-9]+),.*/\1/p'; }
# losses FOLDER: the last line of a step counts
losses() { sed -E 's/.*"step":([0-9]+),"loss":([^,]*),.*"grad_norm":([^,]*),.*/\1 \2 \3/' "$1/metrics.jsonl" | awk '{ last[$1] = $0 } END { for (s in last) print last[s] }' | sort -n; }

kills() { # kills NAME COUNT SUPERVISE-ARGUMENTS...: needs the undisturbed run in calm/
    local name=$1 count=$2 done=0 pid got list
    shift 2
    [ -z "${TEST_SANITIZED:-}" ] || count=2
    rm -rf run
    "$train" run "$work/a.ini" --supervise "$@" >out 2>err &
    pid=$!
    while kill -0 $pid 2>/dev/null && [ $done -lt "$count" ]; do
        sleep "0.$((RANDOM % 5 + 2))"
        list=$(victims "$((done % 2))")
        [ -n "$list" ] && kill -KILL "$(shuf -n 1 <<<"$list")" 2>/dev/null && done=$((done + 1))
    done
    wait $pid
    got=$?
    [ $got = 0 ] || { flunk "$name" "exit code $got after $done kills"; return; }
    [ $done -gt 0 ] || { flunk "$name" "nothing was killed"; return; }
    grep -q 'starting again' err || { flunk "$name" "no word of a new start"; return; }
    [ -z "$(victims)" ] || { flunk "$name" "processes are left"; return; }
    ! [ -e run/.memory ] || { flunk "$name" "shared memory is left"; return; }
    cmp -s <(losses calm) <(losses run) || { flunk "$name" "losses differ after $done kills"; return; }
    cmp -s calm/snapshots/$last run/snapshots/$last || { flunk "$name" "the final state differs after $done kills"; return; }
    pass "$name"
}

RANDOM=${SEED:-7}
"$train" run "$work/a.ini" >out 2>err || flunk "an undisturbed run" "exit code $?"
mv run calm
kills "kills on 1 rank" 5

# A stop that is asked of the supervisor: a complete snapshot, exit code 75, and on to the same bytes.
rm -rf run
"$train" run "$work/a.ini" --supervise >out 2>err &
pid=$!
for i in $(seq 200); do [ -n "$(step)" ] && [ "$(step)" -ge 5 ] && break; sleep 0.05; done
kill -TERM $pid
wait $pid
expect "SIGTERM: exit code 75" $? 75
at=$(step)
if [ -e "run/snapshots/step-$(printf %08d "${at:-0}").h5" ]; then pass "SIGTERM: a snapshot of the last step"; else flunk "SIGTERM: a snapshot of the last step" "none of step ${at:-?}"; fi
"$train" run "$work/a.ini" --supervise --resume >out 2>err
expect "SIGTERM: goes on" $? 0
if cmp -s calm/snapshots/$last run/snapshots/$last; then pass "SIGTERM: the bytes of an undisturbed run"; else flunk "SIGTERM: the bytes of an undisturbed run" "they differ"; fi

# An earlier run's snapshots are not continued by a relaunch, and not lost.
"$train" run "$work/a.ini" --set train.steps=4 --supervise >out 2>err
expect "a new run in a used folder" "$?$(ls -d run/snapshots.1)" "0run/snapshots.1"

# What no relaunch would change is said once; what fails at the same step again and again is given up.
"$train" run "$work/a.ini" --supervise --set memory.budget=1M >out 2>err
expect "a budget that does not fit" "$? $(grep -c '^train: error: ' err)" "3 1"
"$train" run "$work/a.ini" --ranks 2 >out 2>err
expect "--ranks without --supervise" "$? $(grep -c '^train: error: ' err)" "2 1"
"$train" run "$work/a.ini" --supervise --resume run/snapshots >out 2>err
expect "--supervise with --resume PATH" "$? $(grep -c '^train: error: ' err)" "2 1"
"$train" run "$work/a.ini" --supervise --set train.lr=1e6 --set train.clip=0 --set optimizer.name=sgd --set run.dir=bad >out 2>err
got=$?
if [ $got = 1 ] && grep -q 'the run failed 4 times after step' err; then pass "a run that fails at the same step"; else flunk "a run that fails at the same step" "exit code $got"; fi

# Snapshots in memory: the same, with the keeper among the victims; almost nothing is done twice.
sed -i "s|^every = 2|every = 20\nmemory_every = 1|; s|^dir = run|dir = $work/run|" a.ini
"$train" run "$work/a.ini" >out 2>err || flunk "an undisturbed run with memory" "exit code $?"
rm -rf calm && mv run calm
kills "kills of rank and keeper" 6
if grep -q 'resumed at step .* from memory' err; then pass "resumed from memory"; else flunk "resumed from memory" "never"; fi

# Without a supervisor: the keeper writes the newest version when the run is killed; with the keeper dead, too, a resume finds the memory.
wait_for_step() { for i in $(seq 400); do [ -n "$(step)" ] && [ "$(step)" -ge "$1" ] && return; sleep 0.02; done; }
rm -rf run
"$train" run "$work/a.ini" >out 2>err &
wait_for_step 5
kill -KILL $!
wait $! 2>/dev/null
for i in $(seq 300); do [ -e run/.memory ] || break; sleep 0.05; done
at=$(step)
if [ -n "$(find run/snapshots -name "step-*$at.h5" -o -name "step-*$((at - 1)).h5")" ]; then pass "the keeper writes what a killed run left"; else flunk "the keeper writes what a killed run left" "no snapshot of step $at or the one before"; fi
"$train" run "$work/a.ini" --resume >out 2>err &
wait_for_step $((at + 5))
kill -KILL "$(pgrep -f "^train keep $work/run$")" $!
wait $! 2>/dev/null
[ -e run/.memory ] || flunk "memory without a process" "it is gone"
"$train" run "$work/a.ini" --resume >out 2>err
expect "a resume from memory that nobody held" "$? $(grep -c 'resumed at step .* from memory' err)" "0 1"
if cmp -s calm/snapshots/$last run/snapshots/$last; then pass "from memory: the bytes of an undisturbed run"; else flunk "from memory: the bytes of an undisturbed run" "they differ"; fi

if command -v mpirun >/dev/null && "$train" doctor | grep -qiE 'mpi.*(yes|found|[0-9])'; then
    mpi=()
    [ "$(id -u)" = 0 ] && mpi=(--allow-run-as-root)
    sed -i '/^memory_every/d; s/^every = 20/every = 2/; s/^\[checkpoint\]/[parallel]\ndata = 2\nzero = 1\n&/' a.ini
    if [ -z "${TEST_SANITIZED:-}" ]; then
        rm -rf calm run
        mpirun "${mpi[@]}" --oversubscribe --bind-to none -n 2 "$train" run "$work/a.ini" >out 2>err || flunk "an undisturbed run of 2 ranks" "exit code $?"
        mv run calm
        kills "kills on 2 ranks" 5 --ranks 2
    fi
    sed -i 's/^every = 2/every = 20\nmemory_every = 1/; s/^zero = 1/zero = 2/' a.ini
    rm -rf calm run
    mpirun "${mpi[@]}" --oversubscribe --bind-to none -n 2 "$train" run "$work/a.ini" >out 2>err || flunk "an undisturbed run of 2 ranks with memory" "exit code $?"
    mv run calm
    kills "kills of 2 ranks and keeper" 6 --ranks 2
fi
echo "[  PASSED  ] $good test(s)."
[ $bad = 0 ] || { echo "[  FAILED  ] $bad test(s), listed above"; exit 1; }
