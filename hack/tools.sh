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
# cgo and tags are for the one that needs them.
cgo=0 tags=
build() {
  local module=$1 minutes=$2 ldflags="-s -w $3" dir=hack/tools/$1 stamp name missing=
  shift 3
  stamp=$stamps/$module-$({ find "$dir" -type f | LC_ALL=C sort | xargs cat; go env GOVERSION GOARCH; echo "$ldflags$tags"; } | sha256sum | cut -c1-16)
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
    (cd "$dir" && CGO_ENABLED=$cgo nice go build -trimpath -tags "$tags" -ldflags "$ldflags" -o "$bin/.$name.new" "$package")
    mv "$bin/.$name.new" "$bin/$name"
  done
  rm -rf "$stamps/$module-"* "$vendored"
  touch "$stamp"
}

# The version of a module in the nested go.mod.
pin() { awk -v m="$2" '$1 == m { print $2 } $1 == "require" && $2 == m { print $3 }' "hack/tools/$1/go.mod"; }

# The Kubernetes control plane is for those alone who ask for it: it takes long.
if [ "${1-}" = kube ]; then
  version=$(pin kube k8s.io/kubernetes)
  about=k8s.io/component-base/version
  build kube 15 \
    "-X $about.gitVersion=$version -X $about.gitMajor=1 -X $about.gitMinor=$(cut -d. -f2 <<<"$version") -X $about.gitTreeState=clean" \
    ./kubeall
  # Whose pods the virtual node must run as they are.
  build agent-sandbox 4 "" sigs.k8s.io/agent-sandbox/cmd/agent-sandbox-controller
  exit
fi
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
# The durable tier of volumes, with the stores that they can be in: S3, a directory, and
# Badger, SQLite or PostgreSQL for what is where. Its compression is C.
cgo=1 tags=nogateway,nowebdav,nocos,nobos,nohdfs,noibmcos,noobs,nooss,noqingstor,noscs,nosftp,noswift,noazure,nogs,noufile,nob2,nonfs,nodragonfly,nocifs,nostorj,noqiniu,notos,noks3,nomysql,notikv,noetcd,noredis
build juicefs 5 "" github.com/juicedata/juicefs
