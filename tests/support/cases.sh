# Cases of tests in shell; sourced. A failure shows the end of the file err: what the last command said.
good=0 bad=0
pass() { good=$((good + 1)); echo "[       OK ] $1"; }
flunk() {
    bad=$((bad + 1))
    echo "[  FAILED  ] ${1// /_}"
    echo "ERROR: $1: $2"
    [ -s err ] && grep -v '^--' err | tail -n 6 | sed 's/^/    /'
}
expect() { if [ "$2" = "$3" ]; then pass "$1"; else flunk "$1" "$2, not $3"; fi; }
