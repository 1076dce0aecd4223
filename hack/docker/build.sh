#!/usr/bin/env bash
# Builds the images of the Dockerfile beside it with buildah where no registry has their
# bases: over stand-ins of Debian packages and this machine's Go. Of each image NAME it
# leaves build/docker/NAME/rootfs and build/docker/NAME/config.json. Needs root.
set -euo pipefail
cd "$(dirname "$0")/../.."

out=$PWD/build/docker
bootstrapped=
mkdir -p "$out/context"
# Storage of its own, which goes with build/: buildah mounts it on itself, and is the only
# one that does.
buildah() { command buildah --root "$out/storage" --runroot "$out/run" "$@"; }
cleanup() {
  buildah rm --all >/dev/null || true
  umount "$out/storage/overlay" 2>/dev/null || true
  rm -rf --one-file-system "$bootstrapped"
}
trap cleanup EXIT

# Without a container runtime and its network. buildah passes a proxy on, and keeps it not.
build() { buildah build --layers --isolation chroot --network host "$@"; }

if [ ! -e "$out/context/debian.tar" ]; then
  echo "docker: bootstrapping a Debian for the bases (2 minutes)"
  bootstrapped=$(mktemp -d "$out/.debian.XXXXXX")
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Codename: bookworm' 'Component: main' 'Identifier: Packages' | head -n 1)
  debootstrap --variant=minbase bookworm "$bootstrapped/rootfs" ${mirror:+"$mirror"}
  tar -C "$bootstrapped/rootfs" --exclude './dev/*' --exclude './var/cache/apt/*' --exclude './var/lib/apt/lists/*' -cf "$bootstrapped/debian.tar" .
  mv "$bootstrapped/debian.tar" "$out/context/"
fi
for base in debian go static; do
  build --target $base -t s0-base-$base --build-context goroot="$(go env GOROOT)" -f hack/docker/bases.Dockerfile "$out/context"
done

# The builder's caches are this machine's: else it would compile for a quarter of an hour.
# In a stage of an image, --volume would leave directories.
caches=(--volume "$(go env GOMODCACHE):/go/pkg/mod" --volume "$(go env GOCACHE):/root/.cache/go-build")
for image in build api node vk; do
  build --target $image -t s0-$image -f hack/docker/Dockerfile "${caches[@]}" \
    --build-arg GO=localhost/s0-base-go --build-arg DEBIAN=localhost/s0-base-debian --build-arg STATIC=localhost/s0-base-static .
  caches=()
done
buildah rmi --prune >/dev/null # what earlier builds left, for it is large

for image in api node vk; do
  container=$(buildah from s0-$image)
  rm -rf "${out:?}/$image" && mkdir "$out/$image"
  cp -a "$(buildah mount "$container")" "$out/$image/rootfs"
  buildah inspect --type image --format '{{.Config}}' s0-$image >"$out/$image/config.json"
done
