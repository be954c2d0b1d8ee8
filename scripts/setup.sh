#!/bin/sh
# Makes a fresh clone ready to run: dependencies from the lock file and the native addon.
# Called by `npm start`, `npm test` and `npm run bench`; a second call costs a fraction of a second.
set -eu
cd "$(dirname "$0")/.."

if ! command -v cc >/dev/null 2>&1; then
  echo "vring: a C compiler is needed: apt-get install build-essential" >&2
  exit 1
fi

stamp=node_modules/.vring-setup
if [ -L node_modules ]; then
  # A work tree that borrows another checkout's dependencies: `npm ci` would empty that one.
  if [ ! -x node_modules/.bin/node ]; then
    echo "vring: node_modules is a link to $(readlink node_modules), which holds no dependencies:" \
      "run npm ci there, or remove the link" >&2
    exit 1
  fi
elif [ ! -f "$stamp" ] || [ package-lock.json -nt "$stamp" ]; then
  echo "vring: installing dependencies (npm ci)" >&2
  npm ci --no-audit --no-fund --loglevel=error >&2
  touch "$stamp"
fi
node_modules/.bin/node native/build.cjs
node_modules/.bin/node scripts/warm.ts
