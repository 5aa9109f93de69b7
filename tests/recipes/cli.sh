#!/usr/bin/env bash
# The program as a user meets it: good runs, and one clear line with the right exit code for everything that can go wrong.
#   cli.sh TRAIN      TRAIN: the program. Prints a line for each case and ends like a cmocka program.
set -uo pipefail
train=$(realpath "$1")
work=$(mktemp -d "${TMPDIR:-/tmp}/train-cli-XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
export OMP_NUM_THREADS=2
good=0 bad=0 name=

case_() { name=$1; }
pass() { good=$((good + 1)); echo "[       OK ] $name"; }
flunk() {
    bad=$((bad + 1))
    echo "[  FAILED  ] ${name// /_}"
    echo "ERROR: $name: $*"
    [ -s err ] && sed 's/^/    /' err | tail -n 5
}
check() { # check WHY COMMAND...: the case holds when the command succeeds
    local why=$1
    shift
    if "$@" >/dev/null 2>&1; then pass; else flunk "$why"; fi
}
run() { "$train" "$@" >out 2>err; }
code() { # code N COMMAND...: exit code of the program
    local want=$1 got
    shift
    run "$@"
    got=$?
    [ "$got" = "$want" ] || { flunk "exit code $got, not $want: train $*"; return 1; }
}
refused() { # refused N PATTERN COMMAND...: exit code, one line of error, and what it says
    local want=$1 pattern=$2
    shift 2
    code "$want" "$@" || return 1
    [ "$(grep -c '^train: error: ' err)" = 1 ] || { flunk "not exactly one line of error"; return 1; }
    grep '^train: error: ' err | grep -qE -- "$pattern" || { flunk "the error does not say '$pattern'"; return 1; }
    pass
}
recipe() { # recipe FILE: a tiny model on bytes; further lines from stdin
    { cat <<INI
[model]
arch = llama
hidden = 64
layers = 2
heads = 4
kv_heads = 2
intermediate = 96
vocab = 257
context = 64
tokenizer = bytes
[data]
train = text.txt
sequence = 32
[run]
dir = run
INI
        cat; } >"$1"
}
for i in $(seq 300); do echo "line $i of a text that is as good as any other, $((i * 7919 % 1000))"; done >text.txt
recipe a.ini <<INI
[train]
steps = 8
batch = 4
lr = 1e-3
log_every = 1
[optimizer]
name = adamw
[checkpoint]
every = 4
INI

# ---- usage and recipes
case_ "version"; code 0 --version && check "it does not name itself" grep -q '^train [0-9]' out
case_ "help"; code 0 help && check "it does not list the commands" grep -q generate out
case_ "help of a command"; code 0 run --help && check "it does not speak of --resume" grep -q -- --resume out
case_ "no such command"; refused 2 "'rnu'.*run" rnu a.ini
case_ "no recipe"; refused 2 "RECIPE" run
case_ "missing recipe"; refused 2 "gone.ini.*No such file" run gone.ini
case_ "misspelt option"; refused 2 "resmue" run a.ini --resmue
case_ "misspelt key"; sed 's/^lr/rl/' a.ini >b.ini; refused 2 "train\.rl.*b\.ini:[0-9]+.*'train\.lr'|train\.rl.*b\.ini:[0-9]+.*did you mean" run b.ini
case_ "misspelt section"; sed 's/^\[train\]/[trian]/' a.ini >b.ini; refused 2 "trian.*b\.ini:[0-9]+" run b.ini
case_ "misspelt key of an optimizer"; refused 2 "beta3" run a.ini --set optimizer.beta3=1
case_ "misspelt optimizer"; refused 2 "adawm.*adamw" run a.ini --set optimizer.name=adawm
case_ "misspelt key of --set"; refused 2 "train\.stesp.*steps" run a.ini --set train.stesp=1
case_ "value out of range"; refused 2 "train\.steps" run a.ini --set train.steps=-1
case_ "no number"; refused 2 "'fast'.*train\.lr" run a.ini --set train.lr=fast
case_ "no such choice"; refused 2 "train\.schedule.*cosine" run a.ini --set train.schedule=cosinus
case_ "a line that is nothing"; printf '[train]\nsteps\n' >b.ini; refused 2 "b\.ini:2" run b.ini
case_ "nothing half-written"; check "a run folder appeared" test ! -e run

# ---- files
case_ "missing data"; refused 2 "gone\.txt" run a.ini --set data.train=gone.txt
case_ "empty data"; : >empty.txt; refused 2 "empty\.txt" run a.ini --set data.train=empty.txt
case_ "text that is no UTF-8"; printf 'ok\n\xff\xfe broken\n' >bad.txt; run run a.ini --set data.train=bad.txt --set train.steps=1 --set run.dir=utf
check "exit code of damaged text" test $? -le 2
case_ "broken jsonl"; printf '{"text": "one"}\n{"text": \n' >bad.jsonl; refused 2 "bad\.jsonl" run a.ini --set data.train=bad.jsonl
case_ "HDF5 that is none"; echo nothing >bad.h5; refused 2 "bad\.h5" run a.ini --set data.train=bad.h5
read_from() { # read_from FILE: a recipe that trains the model in FILE
    printf '[model]\npath = %s\ntokenizer = bytes\n[data]\ntrain = text.txt\nsequence = 32\n[train]\nsteps = 2\nbatch = 2\n[run]\ndir = read\n' "$1" >read.ini
}
case_ "missing model"; read_from gone.gguf; refused 2 "gone\.gguf" run read.ini
case_ "model that is none"; cp text.txt text.gguf; read_from text.gguf; refused 2 "text\.gguf" run read.ini
case_ "a shape beside a model"; refused 2 "model\.path and model\.hidden" run a.ini --set model.path=text.gguf
case_ "budget"; refused 3 "memory\.budget" run a.ini --set memory.budget=1M

# ---- a run, its folder, what can be done with it
case_ "run"; code 0 run a.ini && check "files of the run folder" test -s run/config.ini -a -s run/metrics.jsonl -a -s run/report.html -a -s run/snapshots/step-00000008.h5
case_ "metrics"; check "8 steps with a loss" test "$(grep -c '"loss"' run/metrics.jsonl)" = 8
case_ "the loss falls"; check "first against last" awk -F'"loss": ?' '{ split($2, x, ","); if (NR == 1) first = x[1]; last = x[1] } END { exit !(last < first) }' run/metrics.jsonl
case_ "inspect a snapshot"; code 0 inspect run/snapshots/step-00000008.h5 && check "it lists a parameter" grep -q 'model.layers.1.mlp.up_proj.weight' out
case_ "generate"; code 0 generate a.ini --snapshot run --prompt "line 1" --max-tokens 8 --temperature 0 && check "no text" test -s out
case_ "same seed, same text"; code 0 generate a.ini --snapshot run --prompt "line" --max-tokens 16 --temperature 1 --seed 3 && cp out first && code 0 generate a.ini --snapshot run --prompt "line" --max-tokens 16 --temperature 1 --seed 3 && check "they differ" cmp first out
case_ "eval"; code 0 eval a.ini --set data.valid=text.txt && check "no perplexity" grep -qi perplexity out err
case_ "export of a snapshot that is none"; refused 2 "text\.txt" export a.ini --snapshot text.txt --format gguf --out x.gguf
case_ "export gguf"; code 0 export a.ini --snapshot run --format gguf --out x.gguf && code 0 inspect x.gguf && check "no tensors" grep -qE "(blk|layers)\.1\." out
case_ "export safetensors"; code 0 export a.ini --snapshot run --format safetensors --out hf && check "no file" test -s hf/model.safetensors -a -s hf/config.json
case_ "truncated gguf"
size=$(stat -c %s x.gguf) ok=1
for cut in 0 3 10 100 1000 $((size / 2)) $((size - 1)); do
    head -c "$cut" x.gguf >cut.gguf
    run inspect cut.gguf; a=$?
    read_from cut.gguf
    run run read.ini; b=$?
    [ "$b" = 2 ] && [ "$(grep -c '^train: error: .*cut\.gguf' err)" = 1 ] && { [ $a = 2 ] || [ "$cut" -gt 1000 ]; } || { flunk "cut at $cut: inspect $a, run $b"; ok=0; break; }
done
[ $ok = 1 ] && pass
case_ "flipped bytes of a gguf never crash"
ok=1
for at in 0 4 8 12 16 24 30 40 60 90 130 200 300 500 800 1300; do
    cp x.gguf flip.gguf
    printf '\xff' | dd of=flip.gguf bs=1 seek="$at" conv=notrunc status=none
    run inspect flip.gguf; a=$?
    [ $a = 0 ] || [ $a = 2 ] || { flunk "byte $at: exit code $a"; ok=0; break; }
done
[ $ok = 1 ] && pass

# ---- resume
mv run straight
case_ "stop_at and resume, bit for bit"
code 0 run a.ini --set train.stop_at=4 && test ! -e run/snapshots/step-00000008.h5 && code 0 run a.ini --resume &&
    check "the last snapshots differ" cmp straight/snapshots/step-00000008.h5 run/snapshots/step-00000008.h5
rm -rf run
case_ "resume of nothing"; refused 2 "no snapshot" run a.ini --resume
case_ "resume from a file that is none"; refused 2 "text\.txt" run a.ini --resume text.txt

long=(--set train.steps=4000 --set checkpoint.every=0 --set train.schedule=constant)
for sig in INT TERM; do
    case_ "SIG$sig: a snapshot, exit code 75, and on"
    rm -rf run
    "$train" run a.ini "${long[@]}" >out 2>err &
    pid=$!
    for i in $(seq 200); do [ "$(wc -l 2>/dev/null <run/metrics.jsonl)" -ge 3 ] 2>/dev/null && break; sleep 0.05; done
    kill -$sig $pid
    wait $pid
    got=$?
    if [ $got != 75 ]; then flunk "exit code $got"; continue; fi
    steps=$(ls run/snapshots)
    step=$((10#$(echo "$steps" | tail -n 1 | tr -dc 0-9 | head -c 8)))
    more=$((step + 5))
    code 0 run a.ini "${long[@]}" --set train.stop_at=$more --resume || continue
    mv run stopped
    code 0 run a.ini "${long[@]}" --set train.stop_at=$more || { rm -rf stopped; continue; }
    file=snapshots/$(printf 'step-%08d.h5' $more)
    check "the snapshots differ from those of a run never stopped" cmp stopped/$file run/$file
    rm -rf stopped
done
rm -rf run

# ---- snapshots in danger
case_ "full disk while saving"
if code 0 run a.ini --set train.stop_at=4; then
    (ulimit -f 200; exec "$train" run a.ini --resume) >out 2>err
    got=$?
    if [ $got = 1 ] && [ "$(grep -c '^train: error: ' err)" = 1 ] && [ "$(ls -A run/snapshots)" = step-00000004.h5 ]; then
        code 0 run a.ini --resume && check "it did not go on" test -s run/snapshots/step-00000008.h5
    else flunk "exit code $got; $(ls -A run/snapshots | tr '\n' ' ')"; fi
fi
case_ "damaged newest snapshot"
printf 'X' | dd of=run/snapshots/step-00000008.h5 bs=1 seek=9000 conv=notrunc status=none
code 0 run a.ini --resume && check "no warning" grep -q 'warning: .*step-00000008.* damaged' err
case_ "all snapshots damaged"
for f in run/snapshots/*; do head -c 5000 "$f" >cut && cp cut "$f"; done
refused 4 "damaged" run a.ini --resume
case_ "damaged snapshot named"; refused 4 "damaged" run a.ini --resume run/snapshots/step-00000008.h5
case_ "snapshot of another model"
rm -rf run
code 0 run a.ini --set train.stop_at=4 && refused 2 "embed_tokens.*\[" run a.ini --resume --set model.hidden=32
case_ "snapshot of another optimizer"; refused 2 "optimizer/" run a.ini --resume --set optimizer.name=sgd
case_ "loss that is not finite"
cp -r run kept
refused 1 "step [0-9]+" run a.ini --resume --set train.lr=1e6 --set train.clip=0 --set train.steps=400
case_ "the good snapshot stays"; check "it was touched" cmp run/snapshots/step-00000004.h5 kept/snapshots/step-00000004.h5

# ---- comparisons
rm -rf run
recipe c.ini <<INI
[train]
steps = 12
batch = 4
lr = 1e-3
log_every = 100
[optimizer]
name = galore
rank = 8
beta1 = 0.95
[compare.wild]
optimizer.name = sgd
train.lr = 1e6
train.steps = 100
[compare.narrow]
optimizer.name = galore
optimizer.rank = 2
[checkpoint]
every = 0
INI
column() { awk -F, -v of="$2" -v name="$3" 'NR == 1 { for (i = 1; i <= NF; i++) if ($i == name) k = i } $1 == of { print $k }' "$1"; } # FILE MEMBER NAME
case_ "compare: no optimizers"; refused 2 "--optimizers" compare c.ini
case_ "compare: unknown optimizer"; refused 2 "'galor'.*'galore'" compare c.ini --optimizers adamw,galor
case_ "compare: twice the same"; refused 2 "twice" compare c.ini --optimizers adam_w,adam-w --set compare.adam-w.optimizer.name=adamw
case_ "compare: empty name"; refused 2 "empty name" compare c.ini --optimizers adamw,,galore
case_ "compare: misspelt key of a member"; refused 2 "optimizer\.rnak.*'optimizer\.rank'" run c.ini --set compare.narrow.optimizer.rnak=4
case_ "compare: a key without its section"; refused 2 "whole key" run c.ini --set compare.narrow.rank=4
case_ "compare: a seed of its own"; refused 2 "share data, seed" run c.ini --set compare.narrow.train.seed=4
case_ "compare: a section that names no optimizer"; refused 2 "compare\.fast.*optimizer\.name" run c.ini --set compare.fast.train.lr=1
case_ "compare: a key that no optimizer has"; refused 2 "optimizer\.rankk" compare c.ini --optimizers adamw --set optimizer.rankk=3
case_ "compare: nothing half-written"; check "a run folder appeared" test ! -e run
case_ "compare: missing data"; refused 2 "gone\.txt" compare c.ini --optimizers adamw,galore --set data.train=gone.txt
rm -rf run
case_ "compare: one fails, the others run"
refused 1 "1 of 4 members failed \(wild\).*not finite" compare c.ini --optimizers adamw,wild,galore,narrow
case_ "compare: a table at the end"; check "not all are in it" test "$(grep -cE '^(adamw|galore|narrow) +[0-9.]+ .* 12$|^wild .*failed' out)" = 4
case_ "compare: summary"; check "state of each" test "$(column run/compare.csv adamw state) $(column run/compare.csv wild state) $(column run/compare.csv narrow state)" = "complete failed complete"
case_ "compare: best first"; check "order" awk -F, 'NR > 1 && $2 == "complete" { if ($6 < last) exit 1; last = $6 }' run/compare.csv
case_ "compare: formula beside measured"; check "they differ" awk -F, 'NR > 1 && $2 == "complete" { if ($13 != $14 || !$13) exit 1; n++ } END { exit n != 3 }' run/compare.csv
case_ "compare: members keep their own settings"; if grep -q '^rank = 2$' run/narrow/config.ini && grep -q '^beta1 = 0.95$' run/adamw/config.ini && grep -q '^rank = 8$' run/galore/config.ini; then pass; else flunk "config.ini of the members"; fi
case_ "compare: curves"; check "12 steps of each" test "$(grep -c '^adamw,' run/curves.csv)" = 12 -a "$(grep -c '^narrow,' run/curves.csv)" = 12
case_ "compare: memory over a step"; check "no rows" test "$(grep -c '^galore,' run/memory.csv)" -gt 5
case_ "compare: page"
if grep -q 'wild failed:' run/compare.html && [ "$(grep -c '<svg' run/compare.html)" -ge 5 ] && ! grep -qE '<script|src=|href=|@import|url\(' run/compare.html && [ -s run/loss-by-step.svg ] && [ -s run/memory-narrow.svg ]; then pass; else flunk "the page is not whole"; fi
case_ "compare: what is complete is not run again"
cp run/adamw/metrics.jsonl kept.jsonl
code 1 compare c.ini --optimizers adamw,wild,galore,narrow && check "it ran again" cmp kept.jsonl run/adamw/metrics.jsonl
case_ "compare: a changed recipe starts anew"
code 0 compare c.ini --optimizers adamw --set train.steps=5 && check "it has 12 steps still" test "$(wc -l <run/adamw/metrics.jsonl)" = 5
rm -rf run

slow=(--optimizers adamw,galore,apollo --set train.steps=$([ -z "${TEST_SANITIZED:-}" ] && echo 400 || echo 120) --set train.schedule=constant)
wait_for() { # wait_for MEMBER LINES: until the member has made so many steps
    for _ in $(seq 1600); do [ "$(wc -l 2>/dev/null <"run/$1/metrics.jsonl")" -ge "$2" ] 2>/dev/null && return 0; sleep 0.05; done
    return 1
}
case_ "compare: SIGINT, exit code 75, and on"
"$train" compare c.ini "${slow[@]}" >out 2>err &
pid=$!
wait_for galore 3
kill -INT $pid
wait $pid
got=$?
cp run/adamw/metrics.jsonl kept.jsonl
if [ $got != 75 ]; then flunk "exit code $got"
elif [ "$(column run/compare.csv adamw state)" != complete ] || [ "$(column run/compare.csv galore state)" != stopped ] || [ "$(column run/compare.csv apollo state)" != waiting ]; then flunk "states: $(cut -d, -f1-3 run/compare.csv | tr '\n' ' ')"
elif code 0 compare c.ini "${slow[@]}"; then
    grep -q 'resumed at step' err && cmp -s kept.jsonl run/adamw/metrics.jsonl && mv run stopped
    code 0 compare c.ini "${slow[@]}" && check "losses differ from those of a comparison never stopped" \
        cmp <(cut -d, -f1,2,4-6 stopped/curves.csv) <(cut -d, -f1,2,4-6 run/curves.csv)
fi
rm -rf run stopped
case_ "compare: a member that is killed"
"$train" compare c.ini "${slow[@]}" >out 2>err &
pid=$!
wait_for galore 3
kill -KILL "$(tr -d ' ' </proc/$pid/task/$pid/children)"
wait $pid
got=$?
if [ $got = 1 ] && grep -q 'signal 9' err && [ "$(column run/compare.csv apollo state)" = complete ]; then pass; else flunk "exit code $got"; fi
rm -rf run

echo "[  PASSED  ] $good test(s)."
[ $bad = 0 ] || { echo "[  FAILED  ] $bad test(s), listed above"; exit 1; }
