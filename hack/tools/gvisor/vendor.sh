#!/usr/bin/env bash
# Copies this module with its dependencies to a directory, and changes gVisor there in
# two places, for the sake of how soon a paused sandbox runs again:
#  - the system call filter comes compiled, as in gVisor's own releases; a plain
#    `go build` leaves that to each start and restore;
#  - 2 threads read a saved sandbox's memory, not 128: these held up the restore itself
#    on a machine with few processors, which does not need the memory yet.
set -euo pipefail
cd "$(dirname "$0")"
dir=$1

cp -r go.mod go.sum precompile "$dir"
cd "$dir"
go mod vendor
chmod -R u+w vendor
gvisor=vendor/gvisor.dev/gvisor
CGO_ENABLED=0 go run -mod=vendor -trimpath ./precompile >"$gvisor/runsc/boot/filter/precompiled.go"
file=$gvisor/pkg/sentry/state/stateio/pagesfile.go
grep -q 'pagesFileFDDefaultMaxParallel = 128$' "$file" # else this version wants another look
sed -i 's/\(pagesFileFDDefaultMaxParallel\) = 128$/\1 = 2/' "$file"
