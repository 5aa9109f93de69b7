# What tests of pipelines share: a tiny model from scratch, and its runs on one rank and on several; sourced after lib.sh.
some_text
cat >a.ini <<INI
[model]
hidden = 32
layers = 5
heads = 4
intermediate = 64
vocab = 263
context = 64
tokenizer = bytes
dtype = f32
[data]
train = text.txt
valid = text.txt
sequence = 32
[train]
steps = 4
batch = 6
micro_batch = 1
lr = 1e-3
warmup = 1
eval_every = 4
seed = 3
log_every = 1000
[checkpoint]
every = 2
keep = 9
[run]
threads = 1
INI
one() { timeout 120 "$train" run a.ini "$@" >out 2>err; }
piped() { local n=$1; shift; ranks "$n" run a.ini --set parallel.pipeline="$n" "$@"; }
# Loss and norm of every step, and the validation loss.
figures() { grep -oE '"(loss|grad_norm|valid_loss)":[^,}]*' "$1/metrics.jsonl"; }
same() { # same NAME FOLDER FOLDER
    if [ -s "$2/metrics.jsonl" ] && [ "$(figures "$2")" = "$(figures "$3" 2>/dev/null)" ]; then pass "$1"; else flunk "$1" "other figures than one rank"; fi
}
grid() { # grid DATA PIPELINE ZERO ARGUMENTS...
    ranks $(($1 * $2)) run a.ini --set "parallel.data=$1" --set "parallel.pipeline=$2" --set "parallel.zero=$3" "${@:4}"
}
close() { # close FOLDER NAME COMMAND...
    rm -rf tied
    "${@:3}" --set run.dir=tied --set model.tied=true
    expect "$2" "$(paste <(figures "$1" | grep '"loss"' | cut -d: -f2) <(figures tied | grep '"loss"' | cut -d: -f2) |
        awk '{ d = ($1 - $2) / $1; d = d < 0 ? -d : d; if (d > most) most = d } END { print NR == 4 && most <= 1e-6 ? "within 1e-6" : NR " losses, " most " off" }')" "within 1e-6"
}
