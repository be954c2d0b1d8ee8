/**
 * The two shell scripts that the test host starts with.
 *
 * `FIRST_INIT` is the initramfs's, in busybox: it mounts what the machine outside shares,
 * lays a tmpfs over it, and changes to that as its root. So everything inside stands where
 * it stands outside, may be written, and is forgotten at the end.
 *
 * `SECOND_INIT` runs with the real programs. It serves commands on the port `vring.control`
 * (`TestMachine` has the other end), or gives people a shell on the console:
 *   > 7 node --test-reporter=spec test/host/smoke.host.ts
 *   < ... what it writes, as it writes it
 *   < RS @vring-end 7 0
 * RS is the record separator, 0x1e: nothing that a test prints begins like an answer.
 */

export const RECORD_SEPARATOR = '\x1e';
export const READY_RECORD = '@vring-ready';
export const END_RECORD = '@vring-end';

/** Tag of the virtiofs, and name of the control port. */
export const SHARE_TAG = 'vring-host';
export const CONTROL_PORT = 'vring.control';

/** The one folder inside that outlives the machine: Node's compile cache (share.ts). */
export const COMPILE_CACHE = '/vring-compile-cache';

/** In the initramfs: what goes on top of the shared tree, as its paths are there. */
export const LAYER = 'layer';
/** Where `SECOND_INIT` is, in the shared tree. */
export const SECOND_INIT_PATH = 'run-test-host';

export const FIRST_INIT = `#!/bin/sh
export PATH=/bin
mount -t proc none /proc; mount -t devtmpfs none /dev
while read -r module; do insmod "/modules/$module"; done < /etc/modules
mkdir /host /over /tree
mount -t virtiofs ${SHARE_TAG} /host || echo 'vring: the share cannot be mounted'
mount -t tmpfs none /over
mkdir /over/work; mv /${LAYER} /over/
layers=lowerdir=/host,upperdir=/over/${LAYER},workdir=/over/work
mount -t overlay -o $layers root /tree ||
  echo 'vring: nothing can be laid over the share'
cd /tree
mkdir -p proc sys dev run tmp root mnt
mount -o bind /host${COMPILE_CACHE} .${COMPILE_CACHE}
mount -t proc none proc; mount -t sysfs none sys; mount -t devtmpfs none dev
mkdir -p dev/pts dev/shm
mount -t devpts none dev/pts; mount -t tmpfs none dev/shm
mount -t tmpfs -o mode=755 none run; mount -t tmpfs -o mode=1777 none tmp
mount -t debugfs none sys/kernel/debug
echo test-host > proc/sys/kernel/hostname
ip link set lo up
umount /proc; umount /dev
exec switch_root /tree /bin/sh /${SECOND_INIT_PATH}
`;

export type SecondInitOptions = {
  /** The repository. */
  readonly folder: string;
  readonly environment: Readonly<Record<string, string>>;
  /** Commands that run on the console before people get a shell there; null: serve the port. */
  readonly interactive: readonly string[] | null;
};

/** Its last line reboots at once, which ends QEMU (`-no-reboot`). */
export function secondInit(options: SecondInitOptions): string {
  const lines = Object.entries(options.environment).map(
    ([name, value]) => `export ${name}=${quote(value)}`,
  );
  lines.push(`cd ${quote(options.folder)}`);
  const work = options.interactive === null ? SERVE : interactive(options.interactive);
  return `#!/bin/sh\n${lines.join('\n')}\n${work}echo b > /proc/sysrq-trigger\n`;
}

/** One word of a shell command. */
export function quote(word: string): string {
  return `'${word.replaceAll("'", `'\\''`)}'`;
}

const SERVE = `for port in /sys/class/virtio-ports/*; do
  [ "$(cat "$port/name")" = ${CONTROL_PORT} ] && exec 3<>"/dev/\${port##*/}"
done
printf '\\036${READY_RECORD}\\n' >&3
while read -r id command <&3; do
  sh -c "$command" < /dev/null >&3 2>&1 3>&-
  printf '\\036${END_RECORD} %s %s\\n' "$id" "$?" >&3
done
`;

function interactive(commands: readonly string[]): string {
  const runs = commands.map((command) => `${command}\n`).join('');
  return `exec < /dev/ttyS0 > /dev/ttyS0 2>&1
stty sane
${runs}echo; echo "The test host, in $PWD: 'exit' ends it."
setsid -c sh -i
`;
}
