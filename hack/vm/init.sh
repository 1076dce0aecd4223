#!/bin/bash
# The first process of the virtual machine that hack/vm/run.sh boots: it mounts
# what every machine has, tries s0, says how that went, and turns the machine off.
export PATH=/s0/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root

say() { echo "s0-vm: $*"; }
off() { sync; echo o >/proc/sysrq-trigger; sleep 60; }

# try NAME COMMAND...
try() {
  local name=$1 began=$SECONDS
  shift
  "$@" || { say "$name FAILED"; off; }
  say "$name: ok, $((SECONDS - began)) s"
}

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t cgroup2 cgroup /sys/fs/cgroup
for c in $(</sys/fs/cgroup/cgroup.controllers); do echo "+$c" >/sys/fs/cgroup/cgroup.subtree_control; done
ip link set lo up
say "$(uname -sr), control groups: $(</sys/fs/cgroup/cgroup.controllers)"

limited() { # the warm sandbox's group has its limits
  local group
  group=$(find /sys/fs/cgroup/s0 -name memory.max -path '*/local-*' | head -1)
  [ "$(<"$group")" = $((2 << 30)) ] && [ "$(<"${group%/*}/memory.swap.max")" = 0 ] && [ "$(<"${group%/*}/pids.max")" != max ]
}
clean() { [ -z "$(find /sys/fs/cgroup/s0 -name 'local-*' 2>/dev/null)" ]; }

try "control groups" cgroup.test -test.v
try "s0d up" s0d up --pool-min 1 --pool-max 1
try "demo" demo
try "doctor" s0d doctor
try "second s0d up" s0d up --pool-min 1 --pool-max 1
try "limits" limited
try "s0d down" s0d down
try "nothing left" clean
say "all is well"
off
