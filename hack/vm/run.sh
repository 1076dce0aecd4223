#!/usr/bin/env bash
# Boots a virtual machine as Debian installs one (its own kernel, control groups
# of version 2 alone), runs the whole of s0 in it, and tests the control groups.
# The processor is emulated, so it works without /dev/kvm and takes minutes; what
# it measures means nothing.
# usage: hack/vm/run.sh   (as root; make tools build images first)
set -euo pipefail
cd "$(dirname "$0")/../.."

src=$PWD
work=$src/build/vm
root=$work/root
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
timeout=30m
mkdir -p "$work"

step() { echo "vm: $*"; }

kernel() {
  ls "$work"/linux-image-*.deb >/dev/null 2>&1 || {
    step "fetching the kernel"
    local package
    package=$(apt-cache depends linux-image-amd64 | awk '/Depends: linux-image/ { print $2; exit }')
    (cd "$work" && apt-get download -q "$package")
  }
  [ -d "$work/kernel" ] || dpkg-deb -x "$work"/linux-image-*.deb "$work/kernel"
  release=$(basename "$work"/kernel/lib/modules/*)
}

rootfs() {
  [ -e "$work/root.done" ] || {
    step "installing a machine"
    rm -rf "$root"
    debootstrap --variant=minbase --include=busybox-static,iproute2,kmod,mount,postgresql,procps,util-linux "$suite" "$root" >"$work/debootstrap.log"
    cp -a "$work/kernel/lib/modules" "$root/lib/"
    depmod -b "$root" "$release"
    touch "$work/root.done"
  }
  step "putting s0 into it"
  rm -rf "$root/s0" && mkdir -p "$root/s0/bin" "$root/s0/images"
  cp build/bin/{containerd,runsc,containerd-shim-s0-v1,procd,s0,s0d} "$root/s0/bin/"
  cp -r build/images/default "$root/s0/images/"
  CGO_ENABLED=0 go build -o "$root/s0/bin/demo" ./hack/demo
  CGO_ENABLED=0 go test -c -o "$root/s0/bin/cgroup.test" ./noded/internal/cgroup
  install -m 755 hack/vm/init.sh "$root/init"
  rm -f "$work/disk" && truncate -s 6G "$work/disk" && mke2fs -q -t ext4 -d "$root" "$work/disk"
}

# The kernel reads its disk with modules, which must come from somewhere before.
initrd() {
  local dir=$work/initrd module names=
  rm -rf "$dir" && mkdir -p "$dir"/{bin,dev,mnt,modules}
  cp "$root/bin/busybox" "$dir/bin/"
  while read -r module; do
    cp "$module" "$dir/modules/"
    names+=" $(basename "$module")"
  done < <(for m in virtio_pci virtio_blk crc32c_generic ext4; do modprobe -d "$root" -S "$release" --show-depends "$m"; done | awk '!seen[$2]++ { print $2 }')
  cat >"$dir/init" <<E
#!/bin/busybox sh
for m in$names; do /bin/busybox insmod /modules/\$m; done
/bin/busybox mount -t devtmpfs dev /dev
until [ -e /dev/vda ]; do /bin/busybox sleep 0.1; done
/bin/busybox mount -t ext4 /dev/vda /mnt
exec /bin/busybox switch_root /mnt /init
E
  chmod 755 "$dir/init"
  (cd "$dir" && find . | cpio -o -H newc --quiet | gzip) >"$work/initrd.gz"
}

kernel
rootfs
initrd
step "booting (up to $timeout; what it prints is in build/vm/log)"
timeout "$timeout" qemu-system-x86_64 -machine q35 -cpu max -accel tcg,thread=multi -smp 2 -m 4096 -nographic -no-reboot -nic none \
  -kernel "$work"/kernel/boot/vmlinuz-* -initrd "$work/initrd.gz" -append "console=ttyS0 quiet panic=1" \
  -drive "file=$work/disk,if=virtio,format=raw,cache=unsafe" </dev/null | tr -d '\r' | tee "$work/log" | sed -un 's/^s0-vm: /vm: /p'
grep -q '^s0-vm: all is well' "$work/log" || { echo "vm: something failed; the end of build/vm/log:" >&2; tail -40 "$work/log" >&2; exit 1; }
