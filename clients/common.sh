# For clients/run and clients/schema, which source it from the repository's root: the program, environments of
# Python, and servers that end with the script.
program=${LAPIDARY:-target/release/lapidary}
[ -x "$program" ] || { echo "$0: $program is not there: cargo build --release"; exit 1; }

# environment REQUIREMENTS FOLDER: FOLDER/venv with just these packages, made anew when they change.
environment() {
    cmp -s "$1" "$2/requirements.txt" && return
    rm -rf "$2/venv"
    python3 -m venv "$2/venv"
    "$2/venv/bin/pip" install --quiet --disable-pip-version-check -r "$1"
    cp "$1" "$2/requirements.txt"
}

servers=()
stop() { for pid in "${servers[@]}"; do kill "$pid" 2>/dev/null || true; done; }
trap stop EXIT

# serve LOG FLAGS...: starts a server on a free port of loopback and sets `url` to where it listens.
serve() {
    local log=$1
    shift
    "$program" serve --listen 127.0.0.1:0 "$@" >"$log.out" 2>"$log.err" &
    servers+=($!)
    for _ in $(seq 300); do
        url=$(grep -m1 -o 'http://127[^ ]*' "$log.out" || true)
        [ -n "$url" ] && return
        kill -0 $! 2>/dev/null || break
        sleep 0.1
    done
    echo "$0: the server did not start:"
    cat "$log.out" "$log.err"
    exit 1
}
