#!/usr/bin/env bash
# Brings every peer that the tests talk to (QEMU, DPDK, Open vSwitch, a kernel for guests, ...) and
# reserves huge pages. For Debian 12 as root: CI, or a machine that may be changed.
set -euo pipefail

packages=(
  qemu-system-x86         # guests
  qemu-utils              # disks
  linux-image-cloud-amd64 # the guests' kernel; the host keeps its own
  busybox-static          # the guests' programs
  cpio                    # checks the initramfs that we write
  dpdk-dev                # dpdk-testpmd: front-end and back-end
  dpdk                    # its drivers
  openvswitch-switch-dpdk # bench
  tshark                  # reads our captures
  iproute2                # TAP devices, network namespaces
  libvirt0                # its schema
  libxml2-utils           # xmllint
  procps                  # ps, for people who look
  qemu-system-common      # virtiofsd, and qemu-storage-daemon: the test host
  linux-headers-cloud-amd64 # with the next: the modules of the test host
  linux-source-6.1
  make
  gcc
  binutils
  xz-utils
  kmod                    # modprobe, depmod
  e2fsprogs               # ext4 on our disks
  tcpdump                 # what a TAP saw
  socat                   # the other end of a vsock
  cryptsetup-bin          # LUKS2 headers
  openssl                 # certificates for NBD over TLS
  libnbd-bin              # nbdinfo, nbdcopy
  nbdkit                  # an old NBD server: no GO, no structured replies
  sg3-utils               # SCSI commands, in guests
  xfsprogs                # xfs on our disks
  grub-pc-bin             # a disk that boots by itself
)

retry() {
  local attempt
  for attempt in 1 2 3 4; do
    "$@" && return 0
    echo "ci-peers: attempt $attempt of '$1 $2' failed" >&2
    sleep $((attempt * 5))
  done
  return 1
}

export DEBIAN_FRONTEND=noninteractive
missing=()
for package in "${packages[@]}"; do
  # Not "installed" alone: a package that was removed leaves its name behind.
  dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || missing+=("$package")
done
# Headers fit the kernel of the same day only: who gets them anew gets the newest kernel too.
case " ${missing[*]} " in *' linux-headers-cloud-amd64 '*) missing+=(linux-image-cloud-amd64) ;; esac
if [ "${#missing[@]}" -gt 0 ]; then
  retry apt-get update -q
  retry apt-get install -q -y --no-install-recommends "${missing[@]}"
fi
# Debian starts the switch as a service; the bench starts its own.
if command -v systemctl >/dev/null 2>&1; then
  systemctl disable --now openvswitch-switch >/dev/null 2>&1 || true
fi

# System calls are counted by the kernel's tracepoint: vring compare.
mountpoint -q /sys/kernel/tracing || mount -t tracefs none /sys/kernel/tracing ||
  echo "ci-peers: no tracefs; tests will say so" >&2

# DPDK wants 2 MiB pages: 256 MiB for each of two processes, and room.
wanted=384
have=$(cat /proc/sys/vm/nr_hugepages)
if [ "$have" -lt "$wanted" ]; then
  echo "$wanted" >/proc/sys/vm/nr_hugepages || true
  have=$(cat /proc/sys/vm/nr_hugepages)
fi
[ "$have" -ge "$wanted" ] || echo "ci-peers: only $have of $wanted huge pages; tests will say so" >&2
