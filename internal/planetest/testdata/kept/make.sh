#!/bin/sh
# Makes a directory here of what a version keeps and what it exported, for
# TestWhatAnOlderVersionKeptIsTakenUp: make.sh PROGRAM DIRECTORY, before the next
# version is released. Every key in it is for tests only and opens nothing else.
set -eu
program=$1 url=http://127.0.0.1:18391
mkdir "$2"
cd "$2"
export ENCLAVE_STATE="$PWD/state" ENCLAVE_BACKEND=simulator

begin() {
	"$program" serve --listen "${url#http://}" --checkpoint-file "$PWD/checkpoints" "$@" >&2 &
	server=$!
	until curl -fsS $url/healthz >/dev/null; do sleep 0.1; done
}
ask() { curl -fsS -H "Authorization: Bearer $(cat test-only.key)" -H 'Content-Type: application/json' "$@"; }
run() { ENCLAVE_BASE_URL=$url ENCLAVE_API_KEY=$(cat test-only.key) "$program" "$@"; }

begin --root-key-file "$PWD/root.key"
"$program" key create --org kept --user test-only --role owner --json | sed -n 's/.*"key": "\(.*\)".*/\1/p' | tr -d '\n' >test-only.key
run run --quiet -c 'raise SystemExit(3)' || true
run run --quiet --timeout 1s -c 'import time
time.sleep(3600)' || true
run session rm "$(run session list --limit 2 | awk 'END { print $1 }')"
"$program" audit key >first.vkey
kill $server
wait $server || true

"$program" audit rotate-key >second.vkey
begin
ask $url/v1/sessions -d '{"code":"print(6*7)\nenclave.result(42)","idempotencyKey":"kept-key","labels":{"kept":"yes"}}' >repeated.json
run run --quiet -c 'import urllib.request
try:
    urllib.request.urlopen("http://denied.example/")
except Exception as e:
    print("no")
enclave.result(1)'
run session list --json >sessions.json
ask $url/v1/usage >usage.json
sleep 1 # until all of it is in a signed checkpoint
run audit export "$(sed 's/{"id":"\([^"]*\).*/\1/' repeated.json)" --output record.json

# One session runs as the log is exported, and as the host loses power.
ask $url/v1/sessions -d '{"code":"import time\ntime.sleep(3600)"}' >interrupted.json
sleep 1
"$program" audit export --all --output log.ndjson
kill -9 $server
wait $server || true
rm -r root.key state/run/control.sock
tar -C state --sort=name --owner=0 --group=0 -czf state.tar.gz .
rm -r state
