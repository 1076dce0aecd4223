#!/usr/bin/env bash
# Installs the Debian packages that the named purposes need and that are missing.
# usage: hack/deps.sh run|test|bench|gen|vm...
set -euo pipefail

packages=()
for purpose in "$@"; do
  case $purpose in
    # What s0 runs on: its database, the file systems of volumes that have a limit, and
    # what builds s0, the template image and JuiceFS.
    run) packages+=(ca-certificates debootstrap e2fsprogs gcc git libc6-dev make postgresql) ;;
    # procd's REPLs are tested with real
    # interpreters; the benchmark runs runc beside runsc; npm installs the public
    # client, and comes with nodejs from elsewhere; s0 builds an image with buildah.
    test)
      packages+=(buildah iproute2 procps runc util-linux)
      packages+=(lua5.4 nodejs perl php-cli python3 r-base-core redis-tools ruby sqlite3 zsh)
      command -v npm >/dev/null || packages+=(npm)
      ;;
    # What netd is measured beside.
    bench) packages+=(libnginx-mod-stream nginx-light) ;;
    # What compiles netd's BPF programs (go generate ./netd/internal/bpf); what came
    # of it is committed.
    gen) packages+=(clang-14 libbpf-dev linux-libc-dev llvm-14) ;;
    # The virtual machine that a stock Debian is tried in.
    vm) packages+=(cpio debootstrap e2fsprogs kmod qemu-system-x86) ;;
    *) echo "deps: no such purpose: $purpose" >&2; exit 2 ;;
  esac
done

missing=()
for p in "${packages[@]}"; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
done
[ ${#missing[@]} -gt 0 ] || exit 0

echo "installing Debian packages: ${missing[*]}"
if ! command -v apt-get >/dev/null; then
  echo "deps: no apt-get here; install what gives you these, then run make again: ${missing[*]}" >&2
  exit 1
fi
if [ "$(id -u)" != 0 ]; then
  echo "deps: not root; run: sudo apt-get install ${missing[*]}" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -y -q --no-install-recommends "${missing[@]}"
