# Shared by the scripts in this folder; they source it from the repository's root.
say() { printf 'train: %s\n' "$*"; }
die() { printf 'train: error: %s\n' "$*" >&2; exit 1; }

# Runs a command with its output in a log; on failure one line says which command, why and where to read more.
quietly() { # quietly LOG WHAT COMMAND...
    local log=$1 what=$2
    shift 2
    mkdir -p "$(dirname "$log")"
    "$@" >"$log" 2>&1 && return 0
    die "$what failed ($log): $(grep -aiE 'error|fail|undefined|cannot|not found' "$log" | head -n 1 | cut -c1-300); read the log"
}

# Sets up (once) and builds a folder. Settings that meson already holds are not set again.
build() { # build FOLDER MESON-OPTION...
    local folder=$1
    shift
    say "building in $folder/"
    if [ -f "$folder/build.ninja" ]; then quietly "$folder/setup.log" "meson configure $folder" meson configure "$folder" "$@"
    else quietly "$folder/setup.log" "meson setup $folder" meson setup "$folder" "$@"; fi
    quietly "$folder/ninja.log" "building $folder" ninja -C "$folder"
}
