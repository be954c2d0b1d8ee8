/** `vring vdpa`: the kernel's vDPA devices, as vdpa(8) manages them, and who drives them. */
import { existsSync } from 'node:fs';
import { Command } from 'commander';
import { VringError } from '../base/errors.ts';
import {
  awaitVdpaPresence,
  bindVdpa,
  type VdpaDeviceInfo,
  type VdpaDriver,
  VdpaNetlink,
  type VdpaPresence,
  vdpaPresence,
  VduseControl,
} from '../vhost-kernel/index.ts';
import { parseMac } from '../wire/ethernet.ts';
import { deviceName, featureNames } from '../wire/virtio.ts';
import { print, printJson, table, UsageError } from './output.ts';

const EXAMPLES = `
Examples:
  vring vdpa mgmt                                   what can make devices
  vring vdpa list                                   devices, drivers, interfaces and nodes
  vring vdpa show net0                              its configuration and features
  vring vdpa add sim0 --mgmtdev vdpasim_net --mac 52:54:00:00:00:01
  vring vdpa bind sim0 vhost                        for a process, by /dev/vhost-vdpa-N
  vring vdpa bind sim0 none                         take it from its driver
  vring vdpa delete sim0

Needs root to change anything. "delete" also destroys a VDUSE device that nobody serves.
Exit status: 0 success, 1 failed, 2 wrong usage.`;

type Options = { readonly json?: boolean };
type AddOptions = Options & {
  readonly mgmtdev: string;
  readonly mac?: string;
  readonly mtu?: string;
  readonly maxVqp?: string;
  readonly features?: string;
};

const DRIVERS: Readonly<Record<string, VdpaDriver | null>> = {
  virtio: 'virtio_vdpa',
  virtio_vdpa: 'virtio_vdpa',
  vhost: 'vhost_vdpa',
  vhost_vdpa: 'vhost_vdpa',
  none: null,
};

/** The driver's own threads and udev have yet to make the node. */
const PRESENCE_TIMEOUT_MS = 5000;

export function vdpaCommand(): Command {
  const command = new Command('vdpa')
    .summary('vDPA devices of this kernel: list, add, delete, bind to a driver')
    .description('Lists, makes and removes vDPA devices, and gives them to drivers.')
    .addHelpText('after', EXAMPLES);
  const add = (text: string, what: string): Command =>
    command.command(text).description(what).option('--json', 'JSON instead of text');
  add('mgmt', 'What can make vDPA devices.').action(showManagement);
  add('list', 'vDPA devices, their drivers, and what Linux made of them.').action(list);
  add('show <name>', 'Configuration and features of a device.').action(show);
  add('add <name>', 'Makes a device.')
    .requiredOption('--mgmtdev <name>', 'what makes it: see vring vdpa mgmt')
    .option('--mac <address>', 'network: its address')
    .option('--mtu <bytes>', 'network: its MTU')
    .option('--max-vqp <pairs>', 'network: pairs of queues at most')
    .option('--features <bits>', 'features to offer, hexadecimal')
    .action(addDevice);
  add('delete <name>', 'Takes a device away; its driver lets go of it first.').action(remove);
  add('bind <name> <driver>', 'Gives a device to virtio or vhost; "none" takes it away.').action(
    bind,
  );
  return command;
}

async function withNetlink<T>(work: (netlink: VdpaNetlink) => Promise<T>): Promise<T> {
  const netlink = await VdpaNetlink.open();
  try {
    return await work(netlink);
  } finally {
    await netlink.close();
  }
}

async function showManagement(options: Options): Promise<void> {
  const found = await withNetlink((netlink) => netlink.managementDevices());
  if (options.json) {
    printJson(found.map((each) => ({ ...each, features: hexadecimal(each.features) })));
    return;
  }
  const rows = found.map(({ name, deviceIds, maxQueues }) => [
    name,
    deviceIds.map(deviceName).join(', '),
    String(maxQueues),
  ]);
  print(await table([{ title: 'NAME' }, { title: 'MAKES' }, { title: 'QUEUES' }], rows));
}

type Listed = VdpaDeviceInfo & VdpaPresence;

async function list(options: Options): Promise<void> {
  const devices = await withNetlink((netlink) => netlink.devices());
  const found: Listed[] = [];
  for (const device of devices) {
    found.push({ ...device, ...(await vdpaPresence(device.name)) });
  }
  if (options.json) {
    printJson(found);
    return;
  }
  const titles = ['NAME', 'TYPE', 'MADE BY', 'DRIVER', 'IS', 'QUEUES'];
  const rows = found.map((each) => [
    each.name,
    deviceName(each.deviceId),
    each.management,
    each.driver ?? '-',
    each.interface ?? each.node ?? '-',
    `${each.maxQueues} of ${each.maxQueueSize}`,
  ]);
  const columns = titles.map((title) => ({ title }));
  print(await table(columns, rows));
}

async function show(name: string, options: Options): Promise<void> {
  const { device, config } = await withNetlink(async (netlink) => ({
    device: await netlink.device(name),
    // Only network devices have one here before Linux 6.9.
    config: await netlink.config(name).catch((error: unknown) => {
      if (error instanceof VringError && error.code === 'ERR_VRING_VDPA') return null;
      throw error;
    }),
  }));
  const all = { ...device, ...config, ...(await vdpaPresence(name)) };
  if (options.json) {
    const { features = null, negotiated = null } = config ?? {};
    printJson({
      ...all,
      features: hexadecimal(features),
      negotiated: hexadecimal(negotiated),
    });
    return;
  }
  const names = (bits: bigint | null | undefined): string =>
    bits === null || bits === undefined ? '-' : featureNames(bits, device.deviceId).join(' ');
  const lines: [string, string | number | boolean | null | undefined][] = [
    ['name', name],
    ['type', deviceName(device.deviceId)],
    ['made by', device.management],
    ['driver', all.driver],
    ['interface', all.interface],
    ['node', all.node],
    ['queues', `${device.maxQueues} of up to ${device.maxQueueSize}`],
    ['mac', config?.mac],
    ['mtu', config?.mtu],
    ['link', config?.linkUp === undefined ? null : config.linkUp],
    ['offers', names(config?.features)],
    ['negotiated', names(config?.negotiated)],
  ];
  for (const [key, value] of lines) {
    if (value !== null && value !== undefined) print(`${key.padEnd(11)} ${value}`);
  }
}

async function addDevice(name: string, options: AddOptions): Promise<void> {
  const { mac, mtu, maxVqp, features, mgmtdev } = options;
  const request = {
    name,
    management: mgmtdev,
    ...(mac === undefined ? {} : { mac: macOf(mac) }),
    ...(mtu === undefined ? {} : { mtu: whole('--mtu', mtu, 68, 65535) }),
    ...(maxVqp === undefined ? {} : { queuePairs: whole('--max-vqp', maxVqp, 1, 32768) }),
    ...(features === undefined ? {} : { features: bits(features) }),
  };
  await withNetlink((netlink) => netlink.add(request));
  await tellPresence('added', name, await awaitVdpaPresence(name, PRESENCE_TIMEOUT_MS), options);
}

async function remove(name: string, options: Options): Promise<void> {
  const isVduse = existsSync(`/dev/vduse/${name}`);
  try {
    await withNetlink((netlink) => netlink.delete(name));
  } catch (error) {
    const isOffBus = error instanceof VringError && error.code === 'ERR_VRING_VDPA_UNKNOWN';
    if (!isVduse || !isOffBus) throw error;
  }
  // The kernel keeps a VDUSE device that is off the bus; a server that runs takes it itself.
  let destroyed = false;
  if (isVduse) {
    using control = VduseControl.open();
    try {
      control.destroy(name);
      destroyed = true;
    } catch (error) {
      if (!(error instanceof VringError) || error.code !== 'ERR_VRING_VDUSE_BUSY') throw error;
    }
  }
  if (options.json) printJson({ deleted: name, destroyed });
  else print(`${name} is deleted${isVduse && !destroyed ? '; a process still serves it' : ''}`);
}

async function bind(name: string, driver: string, options: Options): Promise<void> {
  if (!Object.hasOwn(DRIVERS, driver)) {
    throw new UsageError(`driver: ${JSON.stringify(driver)} is not one of virtio, vhost, none`);
  }
  const wanted = DRIVERS[driver] as VdpaDriver | null;
  await bindVdpa(name, wanted);
  const presence =
    wanted === null ? await vdpaPresence(name) : await awaitVdpaPresence(name, PRESENCE_TIMEOUT_MS);
  await tellPresence('bound', name, presence, options);
}

async function tellPresence(
  what: string,
  name: string,
  presence: VdpaPresence,
  options: Options,
): Promise<void> {
  if (options.json) {
    printJson({ [what]: name, ...presence });
    return;
  }
  const is = presence.interface ?? presence.node;
  const driver = presence.driver === null ? 'no driver' : presence.driver;
  print(`${name} is ${what}: ${driver}${is === null ? '' : `, ${is}`}`);
}

function hexadecimal(features: bigint | null): string | null {
  return features === null ? null : `0x${features.toString(16)}`;
}

function macOf(text: string): Uint8Array {
  const mac = parseMac(text.toLowerCase());
  if (mac !== null) return mac;
  throw new UsageError(
    `--mac: ${JSON.stringify(text)} is no MAC address, such as 52:54:00:00:00:01`,
  );
}

function whole(flag: string, text: string, min: number, max: number): number {
  const value = Number(text);
  if (/^\d+$/.test(text) && value >= min && value <= max) return value;
  throw new UsageError(`${flag}: "${text}" is not a whole number from ${min} to ${max}`);
}

function bits(text: string): bigint {
  if (/^0x[0-9a-f]{1,16}$/i.test(text)) return BigInt(text);
  throw new UsageError(`--features: "${text}" is not hexadecimal, such as 0x300000000`);
}
