/**
 * The first process of our small Linux guest, a busybox shell script. It loads the modules that
 * `/etc/modules` lists, brings `eth0` up as the kernel's command line says, and then either
 * serves commands from the serial console (`vring.shell=script`) or gives people a shell.
 *
 * The command line, each word optional:
 *   vring.ip=10.0.0.2/24[,fd00::2/64]   static addresses of eth0
 *   vring.gw=10.0.0.1                    default route
 *   vring.mtu=1500                       MTU of eth0
 *   vring.name=vm0                       host name
 *   vring.nonet=1                        no network card is waited for
 *   vring.root=/dev/vda1                 this ext4 becomes the root, and its /init, which may be
 *                                        this script, goes on there
 *   vring.shell=script|interactive
 *
 * Script mode, one command per line, answered between two markers (the id is the caller's):
 *   > 7 ping -c 1 10.0.0.1
 *   < @vring-begin 7
 *   < PING 10.0.0.1 ...
 *   < @vring-end 7 0
 */

/** Printed once the network card is configured and the shell reads commands. */
export const READY_MARKER = '@vring-ready';
export const BEGIN_MARKER = '@vring-begin';
export const END_MARKER = '@vring-end';

/**
 * Longest command line: the console is a terminal in canonical mode, N_TTY_BUF_SIZE is 4096 with
 * its newline; the id and a space come first.
 */
export const MAX_COMMAND_BYTES = 4000;

export const GUEST_INIT = `#!/bin/sh
export PATH=/bin HOME=/root TERM=vt100
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev
mkdir -p /dev/pts /dev/shm; mount -t devpts none /dev/pts; mount -t tmpfs none /dev/shm
mount -t tmpfs none /tmp; mount -t tmpfs none /run
while read -r module; do insmod "/lib/modules/$module"; done < /etc/modules
ip=; gateway=; mtu=; shell=interactive; tries=0; root=
for word in $(cat /proc/cmdline); do
  case $word in
    vring.ip=*) ip=\${word#*=} ;;
    vring.gw=*) gateway=\${word#*=} ;;
    vring.mtu=*) mtu=\${word#*=} ;;
    vring.name=*) hostname "\${word#*=}" ;;
    vring.shell=*) shell=\${word#*=} ;;
    vring.nonet=1) tries=50 ;;
    vring.root=*) root=\${word#*=} ;;
  esac
done
if [ -n "$root" ] && [ -z "$VRING_ROOT" ]; then
  while [ ! -e "$root" ]; do usleep 100000; done
  mkdir /newroot; mount -t ext4 "$root" /newroot
  umount /dev/pts /dev/shm /dev /sys /proc
  VRING_ROOT=$root exec busybox switch_root /newroot /init
fi
ip link set lo up
while [ ! -e /sys/class/net/eth0 ] && [ $tries -lt 50 ]; do
  usleep 100000; tries=$((tries + 1))
done
if [ -e /sys/class/net/eth0 ]; then
  # No duplicate address detection: its second of silence would be the start of every test.
  echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad
  [ -n "$mtu" ] && ip link set eth0 mtu "$mtu"
  ip link set eth0 up
  for address in $(echo "$ip" | tr , ' '); do ip addr add "$address" dev eth0; done
  [ -n "$gateway" ] && ip route add default via "$gateway"
else
  echo 'vring guest: no network card appeared'
fi
cd /root
if [ "$shell" = script ]; then
  stty -echo -onlcr
  echo '${READY_MARKER}'
  while read -r id command; do
    echo "${BEGIN_MARKER} $id"
    ( eval "$command" ) < /dev/null 2>&1
    echo "${END_MARKER} $id $?"
  done
else
  echo; echo "vring guest $(hostname): eth0 $ip. 'poweroff -f' ends it."
  setsid cttyhack sh
fi
poweroff -f
`;
