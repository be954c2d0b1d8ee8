/** A switch as a process: configuration, data plane and control API, and how they end. */
import { messageOf } from '../base/errors.ts';
import type { Fd } from '../sys/index.ts';
import { ApiError } from './api-error.ts';
import { ControlApi } from './control-api.ts';
import {
  canHandOver,
  connectSuccessor,
  type HandedOver,
  handOver,
  hearReport,
  sayFailed,
} from './hand-over.ts';
import { ERR_HAND_OVER } from './hand-over-channel.ts';
import type { HandOverRequest } from './hand-over-format.ts';
import type { SwitchControl } from './switch-control.ts';
import type { DiskStatus } from './disks/disk-types.ts';
import type { AdapterStatus } from './disks/scsi-types.ts';
import type { PortStatus, SwitchConfig, SwitchEvent } from './switch-types.ts';

export type StartSwitch = (config: SwitchConfig) => Promise<SwitchControl>;

export class SwitchDaemon {
  readonly control: SwitchControl;
  readonly api: ControlApi;
  readonly config: SwitchConfig;
  /** Resolves when the data plane ended by itself; a supervisor should start over. */
  readonly failed: Promise<Error>;
  /** Resolves when another process has taken over: this one should `surrender` and end. */
  readonly handedOver: Promise<HandedOver>;
  #resolveHandedOver: (outcome: HandedOver) => void = () => undefined;
  #handingOver = false;
  #closing: Promise<void> | null = null;

  private constructor(config: SwitchConfig, control: SwitchControl, api: ControlApi) {
    this.config = config;
    this.control = control;
    this.api = api;
    this.failed = new Promise((resolve) => control.on('error', resolve));
    this.handedOver = new Promise((resolve) => (this.#resolveHandedOver = resolve));
    api.attach(control, (request) => this.#handOver(request));
  }

  /**
   * Takes the control socket first: a second switch on the same socket fails before it touches
   * any port. When the ports cannot start, everything that was made is removed again.
   */
  static async start(config: SwitchConfig, startSwitch: StartSwitch): Promise<SwitchDaemon> {
    const api = await ControlApi.listen(config);
    try {
      const control = await startSwitch(config);
      return new SwitchDaemon(config, control, api);
    } catch (thrown) {
      await api.close();
      throw thrown;
    }
  }

  /** With a switch that took over from a predecessor, and its control socket. */
  static async adopt(
    config: SwitchConfig,
    control: SwitchControl,
    listener: Fd,
  ): Promise<SwitchDaemon> {
    return new SwitchDaemon(config, control, await ControlApi.listen(config, listener));
  }

  /** Begins to hand over; refuses at once what cannot be. How it ends is an event. */
  #handOver(request: HandOverRequest): void {
    const { control } = this;
    if (!canHandOver(control)) {
      throw new ApiError(409, ERR_HAND_OVER, 'this switch cannot be handed over');
    }
    if (this.#handingOver) {
      const message = 'another process is taking over already; see the events';
      throw new ApiError(409, 'ERR_VRING_HAND_OVER_BUSY', message);
    }
    const { channel, pid } = connectSuccessor(request);
    this.#handingOver = true;
    const who = `process ${pid}, vring ${request.version}`;
    control.report('hand-over', `${who}, asks to take over`);
    const run = async (): Promise<void> => {
      try {
        await handOver(channel, control, this.api.listener!);
      } catch (thrown) {
        this.#handingOver = false;
        const text = messageOf(thrown);
        control.report('hand-over-failed', `${who}, did not take over: ${text}; going on here`);
        await sayFailed(channel, thrown);
        channel.close();
        return;
      }
      control.report('handed-over', `to ${who}; captures and event streams end`);
      this.api.stopListening();
      // Letting go takes processor time, which the successor needs now: guests wait for it.
      const pauseMs = await hearReport(channel);
      channel.close();
      await this.api.surrender();
      await control.surrender();
      this.#resolveHandedOver({ pid, pauseMs });
    };
    void control.exclusively(run);
  }

  /** What a supervisor waits for. */
  async readiness(): Promise<Readiness> {
    return {
      ready: true,
      pid: process.pid,
      control: this.config.control.path,
      http: this.api.httpAddress,
      ports: (await this.control.ports()).map(({ name, endpoint }) => ({ name, endpoint })),
      disks: (await this.control.disks.disks()).map(({ name, socket, state }) => {
        return { name, socket, state };
      }),
      scsi: (await this.control.disks.adapters()).map(({ name, socket, state, units }) => {
        return { name, socket, state, units };
      }),
    };
  }

  /** Ends streams and sessions and removes all sockets. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= (async () => {
      await this.api.close();
      await this.control.close();
    })();
    return this.#closing;
  }
}

export type Readiness = {
  readonly ready: true;
  readonly pid: number;
  readonly control: string;
  readonly http: string | null;
  readonly ports: readonly Pick<PortStatus, 'name' | 'endpoint'>[];
  readonly disks: readonly Pick<DiskStatus, 'name' | 'socket' | 'state'>[];
  readonly scsi: readonly Pick<AdapterStatus, 'name' | 'socket' | 'state' | 'units'>[];
};

/** `vring: ready: 2 ports, 1 disk, control socket /run/vring/switch.sock` */
export function readinessLine(readiness: Readiness): string {
  const count = readiness.ports.length;
  const disks = readiness.disks.length;
  const served = disks === 0 ? '' : `, ${disks} disk${disks === 1 ? '' : 's'}`;
  const http = readiness.http === null ? '' : `, http://${readiness.http}`;
  const ports = `${count} port${count === 1 ? '' : 's'}`;
  return `vring: ready: ${ports}${served}, control socket ${readiness.control}${http}`;
}

/** Events as lines of a log, at most `perSecond`: a peer that reconnects in a loop fills none. */
export class EventLog {
  readonly #write: (line: string) => void;
  readonly #perSecond: number;
  #second = 0;
  #written = 0;
  #skipped = 0;

  constructor(write: (line: string) => void, perSecond = 20) {
    this.#write = write;
    this.#perSecond = perSecond;
  }

  add(event: SwitchEvent): void {
    const second = Math.floor(Date.parse(event.at) / 1000);
    if (second !== this.#second) {
      if (this.#skipped > 0) this.#write(`${event.at} ${this.#skipped} more events, not shown`);
      [this.#second, this.#written, this.#skipped] = [second, 0, 0];
    }
    if (this.#written >= this.#perSecond) {
      this.#skipped++;
      return;
    }
    this.#written++;
    const { port, disk } = event;
    const about = port ?? (disk === undefined ? null : `disk ${disk}`);
    this.#write(`${event.at}${about === null ? '' : ` ${about}:`} ${event.kind}: ${event.message}`);
  }
}
