#!/usr/bin/env bash
# Builds the programs of the nested modules under hack/tools into build/bin. A
# program is built again only when it is missing or its module changed.
set -euo pipefail
cd "$(dirname "$0")/.."

bin=$PWD/build/bin
stamps=$PWD/build/stamps
mkdir -p "$bin" "$stamps"
vendored= # what build has made for a while
trap 'rm -rf "$vendored"' EXIT

# build MODULE "MINUTES" LDFLAGS PACKAGE...
build() {
  local module=$1 minutes=$2 ldflags="-s -w $3" dir=hack/tools/$1 stamp name missing=
  shift 3
  stamp=$stamps/$module-$({ find "$dir" -type f | LC_ALL=C sort | xargs cat; go env GOVERSION GOARCH; echo "$ldflags"; } | sha256sum | cut -c1-16)
  for package in "$@"; do
    [ -x "$bin/$(basename "$package")" ] || missing=1
  done
  [ -n "$missing" ] || [ ! -e "$stamp" ] || return 0
  if [ -x "$dir/vendor.sh" ]; then # it builds from a copy that it changes
    vendored=$(mktemp -d "$stamps/.$module.XXXXXX")
    "$dir/vendor.sh" "$vendored"
    dir=$vendored
  fi
  for package in "$@"; do
    name=$(basename "$package")
    echo "building $name from its pinned module (up to $minutes minutes the first time)"
    # Aside, then renamed: a running server keeps the binary that it has open.
    (cd "$dir" && CGO_ENABLED=0 nice go build -trimpath -ldflags "$ldflags" -o "$bin/.$name.new" "$package")
    mv "$bin/.$name.new" "$bin/$name"
  done
  rm -rf "$stamps/$module-"* "$vendored"
  touch "$stamp"
}

# The version of a module in the nested go.mod.
pin() { awk -v m="$2" '$1 == m { print $2 } $1 == "require" && $2 == m { print $3 }' "hack/tools/$1/go.mod"; }

build containerd 3 \
  "-X github.com/containerd/containerd/v2/version.Version=$(pin containerd github.com/containerd/containerd/v2)" \
  github.com/containerd/containerd/v2/cmd/containerd github.com/containerd/containerd/v2/cmd/ctr \
  github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2
# A sandbox's image can be restored only by the version that wrote it: runsc must know its own.
build gvisor 4 \
  "-X gvisor.dev/gvisor/runsc/version.version=$(pin gvisor gvisor.dev/gvisor)" \
  gvisor.dev/gvisor/runsc
build lint 1 "" honnef.co/go/tools/cmd/staticcheck
build h2spec 1 "" github.com/summerwind/h2spec/cmd/h2spec
