/**
 * Helpers for the files that run inside the test host. Importing this elsewhere is an error, so
 * that no such file changes the machine of its author by mistake.
 */
import { execFile } from 'node:child_process';
import { existsSync, readdirSync, readlinkSync, realpathSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { promisify } from 'node:util';
import { waitFor } from '../peers/scratch.ts';
import { INSIDE } from './environment.ts';

if (process.env[INSIDE] !== '1') {
  const file = basename(process.argv[1] ?? '');
  throw new Error(`this file runs inside the test host: npm run test:host -- ${file}`);
}

export type ProgramOptions = {
  readonly input?: string | Uint8Array;
  readonly timeoutMs?: number;
};

/** Times inside are those of an interpreted processor. */
const PROGRAM_TIMEOUT_MS = 60_000;

/** Runs a program to its end and returns its standard output; a status other than 0 is an error. */
export async function run(
  program: string,
  args: readonly string[] = [],
  options: ProgramOptions = {},
): Promise<string> {
  const timeout = options.timeoutMs ?? PROGRAM_TIMEOUT_MS;
  const child = promisify(execFile)(program, [...args], { timeout, maxBuffer: 1 << 26 });
  child.child.stdin?.on('error', () => {}); // a program that reads no input
  child.child.stdin?.end(options.input ?? '');
  try {
    return (await child).stdout;
  } catch (cause) {
    const { stdout = '', stderr = '' } = cause as { stdout?: string; stderr?: string };
    const text = `${program} ${args.join(' ')}: ${(cause as Error).message}\n${stdout}${stderr}`;
    throw new Error(text, { cause });
  }
}

/** `run`, with the words of one line: `sh('ip link set dev tap0 up')`. Quotes are a shell's. */
export function sh(line: string, options: ProgramOptions = {}): Promise<string> {
  return run('sh', ['-euc', line], options);
}

/** Modules by name, with all that they need; one that is loaded already stays. */
export async function loadModules(...names: string[]): Promise<void> {
  for (const name of names) await run('modprobe', [name]);
}

/** Takes modules out, in the order given; one that is not loaded is no error. */
export async function unloadModules(...names: string[]): Promise<void> {
  await run('modprobe', ['-r', ...names]);
}

/** Waits until the file or device node is there. */
export async function waitForPath(path: string, timeoutMs = 10_000): Promise<string> {
  await waitFor(path, timeoutMs, () => existsSync(path));
  return path;
}

/** Waits until the file or device node is gone. */
export async function waitUntilGone(path: string, timeoutMs = 10_000): Promise<void> {
  await waitFor(`the end of ${path}`, timeoutMs, () => !existsSync(path));
}

/** `vdpa dev add`, and the device's name. */
export async function addVdpaDevice(
  name: string,
  managementDevice: string,
  ...words: string[]
): Promise<string> {
  await run('vdpa', ['dev', 'add', 'name', name, 'mgmtdev', managementDevice, ...words]);
  return name;
}

export async function deleteVdpaDevice(name: string): Promise<void> {
  await run('vdpa', ['dev', 'del', name]);
}

export type VdpaBusDriver = 'vhost_vdpa' | 'virtio_vdpa';

/**
 * Gives a vDPA device to one of its two bus drivers, whichever has it now.
 * Linux: Documentation/ABI/testing/sysfs-bus-vdpa.
 */
export function bindVdpaDevice(name: string, driver: VdpaBusDriver): void {
  const device = `/sys/bus/vdpa/devices/${name}`;
  writeFileSync(`${device}/driver_override`, driver);
  if (existsSync(`${device}/driver`)) {
    if (basename(readlinkSync(`${device}/driver`)) === driver) return;
    writeFileSync(`${device}/driver/unbind`, name);
  }
  writeFileSync(`/sys/bus/vdpa/drivers/${driver}/bind`, name);
}

/**
 * `/dev/vhost-vdpa-N` of a vDPA device, which `vhost_vdpa` gets: where an earlier file loaded
 * `virtio_vdpa`, a new device may be that one's.
 */
export async function vhostVdpaPath(name: string): Promise<string> {
  bindVdpaDevice(name, 'vhost_vdpa');
  const folder = `/sys/bus/vdpa/devices/${name}`;
  const node = await waitFor(`the node of ${name}`, 10_000, () =>
    readdirSync(folder).find((entry) => /^vhost-vdpa-\d+$/.test(entry)),
  );
  return waitForPath(`/dev/${node}`);
}

/**
 * The network interface or disk that Linux made of a virtio device: `eth0`, `vda`.
 * @param devicePath of a vDPA device below /sys/bus/vdpa/devices, or a PCI card.
 */
export function kernelDeviceOf(devicePath: string, kind: 'net' | 'block'): Promise<string> {
  return waitFor(`a ${kind} device of ${devicePath}`, 10_000, () => {
    const path = realpathSync(devicePath);
    // virtio_vdpa hangs its device below the one that does DMA: vp_vdpa's is the PCI card.
    for (const folder of [path, join(path, '..')]) {
      for (const virtio of readdirSync(folder).filter((name) => /^virtio\d+$/.test(name))) {
        const found = join(folder, virtio, kind);
        if (existsSync(found)) return readdirSync(found)[0];
      }
    }
    return null;
  });
}
