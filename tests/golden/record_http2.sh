#!/bin/sh
# Records the HTTP/2 calls of recorded/http2.apitrace, as root: python's h2, node and curl, in clear; and what comes of it.
#
#     sudo tests/golden/record_http2.sh
set -eu
cd "$(dirname "$0")/../.."
to=tests/golden/recorded/http2
scratch=$(mktemp -d)
export PYTHONPATH="$PWD"
.venv/bin/python -m tests.live.servers.http2 "$scratch/journal" >"$scratch/address" &
server=$!
trap 'kill $server; rm -r "$scratch"' EXIT
until [ -s "$scratch/address" ]; do sleep 0.1; done
address=$(cat "$scratch/address")
port=$(.venv/bin/python -c 'import json, sys; print(json.loads(sys.argv[1])[1])' "$address")
cat >"$scratch/calls" <<'CALLS'
set -- '{"path": "/bytes/5"}' '{"path": "/status/404"}' '{"path": "/status/418"}' '{"path": "/trailers/26"}' \
  '{"path": "/echo", "method": "POST", "size": 40}' '{"path": "/early"}' '{"path": "/reset"}' \
  '{"path": "/slow/20/x", "cancel": true}' '{"path": "/bytes/20000"}'
printf 'go\ngo\n' | .venv/bin/python -m tests.live.clients.http2 "$scratch/python" "$address" h2c "$@" >&2
set -- '{"path": "/bytes/5"}' '{"path": "/trailers/26"}' '{"path": "/echo", "method": "PUT", "size": 3}'
{ echo go; sleep 1; } | node tests/live/clients/node_http2.js "$scratch/node" "$address" h2c "$@" >&2
curl -s --http2-prior-knowledge "http://127.0.0.1:$port/bytes/7" >&2
CALLS
export scratch address port
.venv/bin/apitrace -q --pid "$server" -w "$to.apitrace" -- sh "$scratch/calls" >/dev/null
.venv/bin/apitrace -r "$to.apitrace" -q --show-secrets -s 256 -j >"$to.jsonl"
TZ=UTC .venv/bin/apitrace -r "$to.apitrace" -q --show-secrets -s 256 -o table -v >"$to-v.txt"
