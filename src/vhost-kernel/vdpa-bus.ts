/**
 * The vDPA bus in sysfs: which driver has a device, and what Linux made of it. Kernel:
 * Documentation/ABI/testing/sysfs-bus-vdpa.
 *
 * Binding and unbinding run the driver's probe and removal inside the write, which for a VDUSE
 * device wait for whoever serves it: all writes go through the thread pool.
 */
import { access, readdir, readlink, realpath, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { messageOf, VringError } from '../base/errors.ts';

/** `virtio_vdpa` makes the kernel its driver, `vhost_vdpa` a process. */
export type VdpaDriver = 'virtio_vdpa' | 'vhost_vdpa';

/** What became of a device. */
export type VdpaPresence = {
  readonly driver: string | null;
  /** `/dev/vda`, `/dev/vhost-vdpa-0`. */
  readonly node: string | null;
  /** `eth1`. */
  readonly interface: string | null;
};

const BUS = '/sys/bus/vdpa';
const POLL_MS = 20;

/** @throws VringError ERR_VRING_VDPA_UNKNOWN. */
export async function vdpaDriver(name: string): Promise<string | null> {
  const device = await deviceFolder(name);
  return await readlink(join(device, 'driver')).then(basename, () => null);
}

/**
 * Gives a device to a driver, whichever has it now; null takes it from its driver.
 * @throws VringError ERR_VRING_VDPA_UNKNOWN, ERR_VRING_VDPA_DRIVER (not loaded, or it refuses).
 */
export async function bindVdpa(name: string, driver: VdpaDriver | null): Promise<void> {
  const device = await deviceFolder(name);
  const present = await vdpaDriver(name);
  if (driver !== null && !(await exists(`${BUS}/drivers/${driver}`))) {
    const text = `the driver ${driver} is not loaded; modprobe ${driver}`;
    throw new VringError('ERR_VRING_VDPA_DRIVER', text, { recovery: 'retry' });
  }
  await put(`${device}/driver_override`, driver ?? '\n', name);
  if (present === driver) return;
  if (present !== null) await put(`${BUS}/drivers/${present}/unbind`, name, name);
  if (driver !== null) await put(`${BUS}/drivers/${driver}/bind`, name, name);
}

/** What Linux made of the device by now. */
export async function vdpaPresence(name: string): Promise<VdpaPresence> {
  const device = await deviceFolder(name);
  const driver = await vdpaDriver(name);
  const vhost = (await readdir(device)).find((each) => /^vhost-vdpa-\d+$/.test(each));
  if (vhost !== undefined) return { driver, node: `/dev/${vhost}`, interface: null };
  const virtio = await virtioFolder(device);
  const [disk] = virtio === null ? [] : await list(join(virtio, 'block'));
  const [card] = virtio === null ? [] : await list(join(virtio, 'net'));
  return { driver, node: disk === undefined ? null : `/dev/${disk}`, interface: card ?? null };
}

/** `vdpaPresence` once there is something, or after `timeoutMs`. */
export async function awaitVdpaPresence(name: string, timeoutMs: number): Promise<VdpaPresence> {
  const until = performance.now() + timeoutMs;
  for (;;) {
    const found = await vdpaPresence(name);
    const isThere = found.interface !== null || (found.node !== null && (await exists(found.node)));
    if (isThere || performance.now() >= until) return found;
    await sleep(POLL_MS);
  }
}

/** virtio_vdpa hangs its device below the one that does DMA: vp_vdpa's is the PCI card. */
async function virtioFolder(device: string): Promise<string | null> {
  for (const folder of [device, join(device, '..')]) {
    const found = (await readdir(folder)).find((each) => /^virtio\d+$/.test(each));
    if (found !== undefined) return join(folder, found);
  }
  return null;
}

async function deviceFolder(name: string): Promise<string> {
  try {
    if (!/^[\w.:-]+$/.test(name)) throw new Error(`${JSON.stringify(name)} is no name`);
    return await realpath(`${BUS}/devices/${name}`);
  } catch (cause) {
    const text = `there is no vDPA device ${name}; vring vdpa list shows those that there are`;
    throw new VringError('ERR_VRING_VDPA_UNKNOWN', text, { cause });
  }
}

async function put(path: string, text: string, name: string): Promise<void> {
  try {
    await writeFile(path, text);
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    const why = code === 'EACCES' || code === 'EPERM' ? 'no permission; run as root' : '';
    const what = `vDPA device ${name}: writing ${path}: ${why === '' ? messageOf(cause) : why}`;
    throw new VringError('ERR_VRING_VDPA_DRIVER', what, { cause });
  }
}

async function exists(path: string): Promise<boolean> {
  return await access(path).then(
    () => true,
    () => false,
  );
}

async function list(folder: string): Promise<string[]> {
  return await readdir(folder).catch(() => []);
}
