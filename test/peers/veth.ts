/**
 * A veth pair between two network namespaces: `up0` of the switch's host, and `far0` of another
 * host. What its far end leaves to a card can be turned off, as `ethtool -K` does.
 */
import { fileURLToPath } from 'node:url';
import { PrivateMemory } from '../../src/memory/index.ts';
import { arena, arenaHostAddress } from '../../src/sys/index.ts';
import { interfaceIoctl, interfaceRequest } from '../../src/sys/tap.ts';
import { AF_INET, IFREQ_UNION_AT, SIOCETHTOOL } from '../../src/wire/linux.ts';
import { NetNamespace } from './netns.ts';

const ETHTOOL_STXCSUM = 0x17; // linux/ethtool.h: a struct ethtool_value
const ETHTOOL_GFLAGS = 0x25;
const ETHTOOL_SFLAGS = 0x26;
const ETH_FLAG_TXVLAN = 1 << 7;

export class VethPair {
  /** The other host. */
  readonly far: NetNamespace;
  readonly #near: NetNamespace;

  static async create(near: NetNamespace, queues = 1): Promise<VethPair> {
    const pair = new VethPair(near, await NetNamespace.create());
    try {
      await pair.plug(queues);
      return pair;
    } catch (error) {
      await pair.close();
      throw error;
    }
  }

  private constructor(near: NetNamespace, far: NetNamespace) {
    this.#near = near;
    this.far = far;
  }

  /** Makes the two interfaces and sets them up. */
  async plug(queues = 1): Promise<void> {
    const each = ['numtxqueues', String(queues), 'numrxqueues', String(queues)];
    const peer = ['peer', 'name', 'far0', ...each, 'netns', this.far.name];
    await this.#near.ip('link', 'add', 'up0', ...each, 'type', 'veth', ...peer);
    await this.#near.ip('link', 'set', 'up0', 'up');
    await this.far.ip('link', 'set', 'far0', 'up');
  }

  /** The far host finishes checksums and writes tags itself, as it does for a wire. */
  async withoutOffloads(): Promise<void> {
    await this.far.shell(`${process.execPath} ${fileURLToPath(import.meta.url)} far0`);
  }

  close(): Promise<void> {
    return this.far.close();
  }
}

/** In a process of its own, which is in the namespace. */
function turnOffloadsOff(name: string): void {
  using memory = PrivateMemory.allocate(4096);
  const { view } = arena();
  const ask = (command: number, value: number): number => {
    view.setUint32(memory.offset, command, true);
    view.setUint32(memory.offset + 4, value, true);
    const request = interfaceRequest(name);
    const address = arenaHostAddress() + BigInt(memory.offset);
    request.view.setBigUint64(IFREQ_UNION_AT, address, true);
    interfaceIoctl(AF_INET, 'SIOCETHTOOL', SIOCETHTOOL, request, name);
    return view.getUint32(memory.offset + 4, true);
  };
  ask(ETHTOOL_STXCSUM, 0);
  ask(ETHTOOL_SFLAGS, ask(ETHTOOL_GFLAGS, 0) & ~ETH_FLAG_TXVLAN);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) turnOffloadsOff(process.argv[2]!);
