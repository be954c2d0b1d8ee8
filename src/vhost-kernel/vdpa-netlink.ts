/**
 * vDPA devices as `vdpa dev` of iproute2 manages them: generic netlink, drivers/vdpa/vdpa.c.
 *
 * Adding a device runs its driver's probe inside the request, and for a VDUSE device that probe
 * waits for the answers of whoever serves it. Requests therefore run in the thread pool: a process
 * may add the device that it serves.
 */
import { VringError } from '../base/errors.ts';
import { errnoName, NetlinkSocket } from '../sys/index.ts';
import * as netlink from '../wire/netlink.ts';
import { formatMac } from '../wire/ethernet.ts';
import * as vdpa from '../wire/vdpa-netlink.ts';

export type VdpaManagement = {
  /** As `add` takes it: `vduse`, `vdpasim_net`, `pci/0000:01:00.0`. */
  readonly name: string;
  /** Virtio device ids. */
  readonly deviceIds: readonly number[];
  readonly maxQueues: number;
  readonly features: bigint;
};

export type VdpaDeviceInfo = {
  readonly name: string;
  readonly management: string;
  readonly deviceId: number;
  readonly vendorId: number;
  readonly maxQueues: number;
  readonly maxQueueSize: number;
};

/** Null: the device does not say. */
export type VdpaConfig = {
  readonly name: string;
  readonly deviceId: number;
  readonly mac: string | null;
  readonly mtu: number | null;
  readonly queuePairs: number | null;
  readonly linkUp: boolean | null;
  readonly features: bigint | null;
  readonly negotiated: bigint | null;
};

export type AddVdpa = {
  readonly name: string;
  readonly management: string;
  readonly mac?: Uint8Array;
  readonly mtu?: number;
  readonly queuePairs?: number;
  readonly features?: bigint;
};

export class VdpaNetlink {
  readonly #socket: NetlinkSocket;
  readonly #family: number;
  #sequence = 1;
  /** One request at a time: answers come in its order. */
  #turn: Promise<unknown> = Promise.resolve();

  /** @throws VringError ERR_VRING_KERNEL_LACKS: no vDPA in this kernel, or not loaded. */
  static async open(): Promise<VdpaNetlink> {
    const socket = NetlinkSocket.open(netlink.NETLINK_GENERIC);
    try {
      const control = new VdpaNetlink(socket, netlink.GENL_ID_CTRL);
      return new VdpaNetlink(socket, await control.#familyId(vdpa.VDPA_GENL_NAME));
    } catch (error) {
      socket.close();
      throw error;
    }
  }

  /** Use `open`. */
  constructor(socket: NetlinkSocket, family: number) {
    this.#socket = socket;
    this.#family = family;
  }

  async managementDevices(): Promise<VdpaManagement[]> {
    const found = await this.#dump(vdpa.VDPA_CMD_MGMTDEV_GET);
    return found.map((each) => {
      const classes = netlink.numberOf(each.get(vdpa.VDPA_ATTR_MGMTDEV_SUPPORTED_CLASSES)) ?? 0n;
      const ids = Array.from({ length: 64 }, (_, id) => id);
      return {
        name: managementName(each),
        deviceIds: ids.filter((id) => ((classes >> BigInt(id)) & 1n) === 1n),
        maxQueues: numeric(each, vdpa.VDPA_ATTR_DEV_MGMTDEV_MAX_VQS) ?? 0,
        features: netlink.numberOf(each.get(vdpa.VDPA_ATTR_DEV_SUPPORTED_FEATURES)) ?? 0n,
      };
    });
  }

  async devices(): Promise<VdpaDeviceInfo[]> {
    return (await this.#dump(vdpa.VDPA_CMD_DEV_GET)).map(deviceOf);
  }

  /** @throws VringError ERR_VRING_VDPA: there is no such device. */
  async device(name: string): Promise<VdpaDeviceInfo> {
    const named = netlink.stringAttribute(vdpa.VDPA_ATTR_DEV_NAME, name);
    const what = `the vDPA device ${name}`;
    return deviceOf(await this.#one(vdpa.VDPA_CMD_DEV_GET, [named], what));
  }

  /** What a network device has in its configuration space; others say less. */
  async config(name: string): Promise<VdpaConfig> {
    const named = netlink.stringAttribute(vdpa.VDPA_ATTR_DEV_NAME, name);
    const what = `the configuration of ${name}`;
    const found = await this.#one(vdpa.VDPA_CMD_DEV_CONFIG_GET, [named], what);
    const mac = found.get(vdpa.VDPA_ATTR_DEV_NET_CFG_MACADDR);
    const status = numeric(found, vdpa.VDPA_ATTR_DEV_NET_STATUS);
    return {
      name,
      deviceId: numeric(found, vdpa.VDPA_ATTR_DEV_ID) ?? 0,
      mac: mac === undefined ? null : formatMac(mac),
      mtu: numeric(found, vdpa.VDPA_ATTR_DEV_NET_CFG_MTU),
      queuePairs: numeric(found, vdpa.VDPA_ATTR_DEV_NET_CFG_MAX_VQP),
      linkUp: status === null ? null : (status & 1) === 1,
      features: netlink.numberOf(found.get(vdpa.VDPA_ATTR_VDPA_DEV_SUPPORTED_FEATURES)),
      negotiated: netlink.numberOf(found.get(vdpa.VDPA_ATTR_DEV_NEGOTIATED_FEATURES)),
    };
  }

  /** Counters that the device's vendor defines, by name. Few devices have any. */
  async stats(name: string, queue: number): Promise<Record<string, bigint>> {
    const words = [
      netlink.stringAttribute(vdpa.VDPA_ATTR_DEV_NAME, name),
      netlink.numberAttribute(vdpa.VDPA_ATTR_DEV_QUEUE_INDEX, 4, BigInt(queue)),
    ];
    const what = `the statistics of queue ${queue} of ${name}`;
    const found = await this.#one(vdpa.VDPA_CMD_DEV_VSTATS_GET, words, what);
    const names = found.all(vdpa.VDPA_ATTR_DEV_VENDOR_ATTR_NAME).map(netlink.textOf);
    const values = found.all(vdpa.VDPA_ATTR_DEV_VENDOR_ATTR_VALUE).map(netlink.numberOf);
    return Object.fromEntries(names.map((each, i) => [each, values[i] ?? 0n]));
  }

  /** Resolves when the driver that takes it has been through its probe. */
  async add(add: AddVdpa): Promise<void> {
    const { name, management, mac, mtu, queuePairs, features } = add;
    const slash = management.indexOf('/');
    const words = [
      netlink.stringAttribute(vdpa.VDPA_ATTR_DEV_NAME, name),
      netlink.stringAttribute(vdpa.VDPA_ATTR_MGMTDEV_DEV_NAME, management.slice(slash + 1)),
    ];
    const put = (type: number, sizeBytes: 2 | 8, value: number | bigint | undefined): void => {
      if (value !== undefined) words.push(netlink.numberAttribute(type, sizeBytes, BigInt(value)));
    };
    if (slash >= 0) {
      const bus = management.slice(0, slash);
      words.push(netlink.stringAttribute(vdpa.VDPA_ATTR_MGMTDEV_BUS_NAME, bus));
    }
    if (mac !== undefined) {
      words.push(netlink.attribute(vdpa.VDPA_ATTR_DEV_NET_CFG_MACADDR, mac));
    }
    put(vdpa.VDPA_ATTR_DEV_NET_CFG_MTU, 2, mtu);
    put(vdpa.VDPA_ATTR_DEV_NET_CFG_MAX_VQP, 2, queuePairs);
    put(vdpa.VDPA_ATTR_DEV_FEATURES, 8, features);
    await this.#do(vdpa.VDPA_CMD_DEV_NEW, words, `adding ${name} to ${management}`);
  }

  /** Resolves when its driver has let go of it. */
  async delete(name: string): Promise<void> {
    const named = netlink.stringAttribute(vdpa.VDPA_ATTR_DEV_NAME, name);
    await this.#do(vdpa.VDPA_CMD_DEV_DEL, [named], `deleting ${name}`);
  }

  /** Idempotent; waits for a request that is under way. */
  async close(): Promise<void> {
    await this.#turn;
    this.#socket.close();
  }

  async #familyId(family: string): Promise<number> {
    const named = netlink.stringAttribute(netlink.CTRL_ATTR_FAMILY_NAME, family);
    try {
      const found = await this.#one(netlink.CTRL_CMD_GETFAMILY, [named], `family ${family}`);
      return numeric(found, netlink.CTRL_ATTR_FAMILY_ID) ?? 0;
    } catch (cause) {
      if ((cause as VringError).code !== 'ERR_VRING_VDPA_UNKNOWN') throw cause;
      const text =
        'this kernel speaks no vDPA netlink: load the module (modprobe vdpa), in the first ' +
        'network namespace; a kernel without CONFIG_VDPA needs it built, see docs/vduse.md';
      throw new VringError('ERR_VRING_KERNEL_LACKS', text, { cause });
    }
  }

  async #one(command: number, words: Uint8Array[], what: string): Promise<Reply> {
    const [first] = await this.#ask(command, netlink.NLM_F_ACK, words, what);
    if (first !== undefined) return first;
    throw new VringError('ERR_VRING_VDPA', `${what}: the kernel answered nothing`);
  }

  async #do(command: number, words: Uint8Array[], what: string): Promise<void> {
    await this.#ask(command, netlink.NLM_F_ACK, words, what);
  }

  async #dump(command: number): Promise<Reply[]> {
    return await this.#ask(command, netlink.NLM_F_DUMP, [], 'the list of vDPA devices');
  }

  #ask(command: number, flags: number, words: Uint8Array[], what: string): Promise<Reply[]> {
    const asked = this.#turn.then(() => this.#exchange(command, flags, words, what));
    this.#turn = asked.catch(() => undefined);
    return asked;
  }

  async #exchange(
    command: number,
    flags: number,
    attributes: Uint8Array[],
    what: string,
  ): Promise<Reply[]> {
    const sequence = this.#sequence++;
    const { VDPA_GENL_VERSION: version } = vdpa;
    const request = { family: this.#family, flags, sequence, command, version, attributes };
    await this.#socket.send(netlink.encodeGeneric(request));
    const replies: Reply[] = [];
    for (;;) {
      for (const message of netlink.decodeMessages(await this.#socket.receive())) {
        if (message.sequence !== sequence) continue; // of a request that was given up
        if (message.kind === 'data') {
          replies.push(new Reply(message.body));
          continue;
        }
        if (message.errno === 0) return replies;
        throw refused(what, message.errno, message.kind === 'error' ? message.text : '');
      }
    }
  }
}

/** Attributes of an answer. */
class Reply {
  readonly #body: Uint8Array;

  constructor(body: Uint8Array) {
    this.#body = body;
  }

  get(type: number): Uint8Array | undefined {
    return this.all(type)[0];
  }

  all(type: number): Uint8Array[] {
    return netlink.attributesOf(this.#body, type);
  }
}

function numeric(reply: Reply, type: number): number | null {
  const value = netlink.numberOf(reply.get(type));
  return value === null ? null : Number(value);
}

function managementName(reply: Reply): string {
  const bus = netlink.textOf(reply.get(vdpa.VDPA_ATTR_MGMTDEV_BUS_NAME));
  const name = netlink.textOf(reply.get(vdpa.VDPA_ATTR_MGMTDEV_DEV_NAME));
  return bus === '' ? name : `${bus}/${name}`;
}

function deviceOf(reply: Reply): VdpaDeviceInfo {
  return {
    name: netlink.textOf(reply.get(vdpa.VDPA_ATTR_DEV_NAME)),
    management: managementName(reply),
    deviceId: numeric(reply, vdpa.VDPA_ATTR_DEV_ID) ?? 0,
    vendorId: numeric(reply, vdpa.VDPA_ATTR_DEV_VENDOR_ID) ?? 0,
    maxQueues: numeric(reply, vdpa.VDPA_ATTR_DEV_MAX_VQS) ?? 0,
    maxQueueSize: numeric(reply, vdpa.VDPA_ATTR_DEV_MAX_VQ_SIZE) ?? 0,
  };
}

const HINTS: Readonly<Record<string, string>> = {
  EPERM: 'run as root (CAP_NET_ADMIN)',
  EEXIST: 'there is one of that name; delete it first',
  ENODEV: 'vring vdpa list and vring vdpa mgmt show what there is',
  ENOTSUP: 'the device or its management device does not support that',
  EINVAL:
    'for mgmtdev vduse: a device of that name must be served (vring serve ... --vduse NAME) first',
};

function refused(what: string, errno: number, text: string): VringError {
  const name = errnoName(errno);
  const unknown = name === 'ENODEV' || name === 'ENOENT';
  const hint = HINTS[name] === undefined ? '' : `; ${HINTS[name]}`;
  const words = text === '' ? name : `${name}, ${text}`;
  const code = unknown ? 'ERR_VRING_VDPA_UNKNOWN' : 'ERR_VRING_VDPA';
  return new VringError(code, `${what}: the kernel refuses: ${words}${hint}`);
}
