import { VringError } from '../base/errors.ts';
import { MAX_PORTS } from '../base/limits.ts';
import { ERR_PORT_LIMIT, portExists, portNotFound } from './switch-control.ts';
import type { PortEntry } from './switch-port.ts';
import type { PortConfig } from './switch-types.ts';

/** The ports of a switch by their number, which is what the data plane knows them by. */
export class PortTable {
  readonly #entries: (PortEntry | null)[] = [];

  at(number: number): PortEntry | null {
    return this.#entries[number] ?? null;
  }

  set(number: number, entry: PortEntry | null): void {
    while (this.#entries.length <= number) this.#entries.push(null);
    this.#entries[number] = entry;
  }

  entries(): PortEntry[] {
    return this.#entries.filter((entry) => entry !== null);
  }

  /** @throws VringError ERR_VRING_PORT_NOT_FOUND */
  named(name: string): PortEntry {
    const entry = this.entries().find(({ port }) => port.config.name === name);
    if (entry === undefined) throw portNotFound(name);
    return entry;
  }

  /** @throws VringError ERR_VRING_PORT_LIMIT: none is free for the port of that name. */
  freeNumber(name: string): number {
    const gap = this.#entries.indexOf(null);
    const number = gap === -1 ? this.#entries.length : gap;
    if (number < MAX_PORTS) return number;
    throw new VringError(
      ERR_PORT_LIMIT,
      `port ${name}: a switch has ${MAX_PORTS} ports at most; remove one first`,
    );
  }

  /** @throws VringError ERR_VRING_PORT_EXISTS: a port has the name, or what it leads to. */
  refuseTwins(config: PortConfig): void {
    for (const { port } of this.entries()) {
      const other = port.config;
      if (other.name === config.name) throw portExists(`the name ${config.name}`, other.name);
      if (endpointOf(other) === endpointOf(config))
        throw portExists(endpointOf(config), other.name);
    }
  }
}

export function endpointOf(config: PortConfig): string {
  if ('interface' in config) return `interface ${config.interface}`;
  return config.kind === 'vduse' ? `VDUSE device ${config.device}` : `socket ${config.path}`;
}
