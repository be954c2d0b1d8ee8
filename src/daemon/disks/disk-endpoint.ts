/**
 * Where front-ends come to a disk or to a SCSI adapter: the socket, its session, what people are
 * told of both, and how both go over to another process.
 */
import type { DeviceHost } from '../../runtime/index.ts';
import type { Fd } from '../../sys/index.ts';
import {
  BackendListener,
  type EndpointEvent,
  type EndpointOptions,
  type PreparedMemory,
} from '../../vhost-user/index.ts';
import {
  type EndpointPart,
  planMemory,
  suspendEndpoint,
  takeMemory,
  takeSession,
} from '../endpoint-hand-over.ts';
import type { ReceivedFds, SentFds } from '../hand-over-channel.ts';
import type { SessionPart } from '../hand-over-format.ts';
import { offenceOf } from '../port-session.ts';
import { reasonOf } from '../switch-port.ts';
import type { DiskReason, DiskState, SocketConfig } from './disk-types.ts';

export type DiskEndpointOptions = {
  /** In messages: `disk vm0`. */
  readonly label: string;
  /** Of events: `disk-up`, `disk-down`. */
  readonly kind: 'disk' | 'scsi';
  readonly report: (kind: string, message: string) => void;
  /** Why the last session ended; null: it is of no interest any more. */
  readonly onReason: (reason: DiskReason | null) => void;
};

export class DiskEndpoint {
  /** While rings stop and start without anybody being told. */
  isQuiet = false;
  readonly #options: DiskEndpointOptions;
  #listener: BackendListener | null = null;
  #host: DeviceHost | null = null;
  #sessionsBefore = 0;
  #wasUp = false;
  /** Of a predecessor, until there is a listener that has them. */
  #adopted: Fd | null = null;
  #prepared: PreparedMemory | null = null;

  constructor(options: DiskEndpointOptions) {
    this.#options = options;
  }

  get isOpen(): boolean {
    return this.#listener !== null;
  }

  get sessions(): number {
    return this.#sessionsBefore + (this.#listener?.sessions ?? 0);
  }

  get state(): DiskState {
    if (this.#listener === null || this.#host === null) return 'failed';
    if (this.#listener.session === null) return 'listening';
    const { vrings } = this.#host;
    if (vrings.some(({ fault }) => fault !== null)) return 'broken';
    const runs = vrings.some(({ attached, enabled }) => attached && enabled);
    return runs ? 'up' : 'negotiating';
  }

  /** @throws VringError ERR_VRING_SOCKET_IN_USE, ERR_VRING_SOCKET_PATH; SysError. */
  listen(
    { socket, socketMode, socketOwner }: SocketConfig,
    host: DeviceHost,
    adopt?: EndpointOptions['adopt'],
  ): void {
    const listener = this.#adopted;
    this.#listener = new BackendListener({
      path: socket,
      target: host,
      mode: socketMode,
      onEvent: (event) => this.#endpointEvent(event),
      ...(socketOwner === null ? {} : { owner: socketOwner }),
      ...(listener === null ? {} : { listener }),
      ...(adopt === undefined ? {} : { adopt }),
    });
    this.#host = host;
    this.#adopted = null;
  }

  /** Ends the session, and removes the socket. Idempotent. */
  async close(): Promise<void> {
    const listener = this.#listener;
    this.#listener = null;
    this.#sessionsBefore += listener?.sessions ?? 0;
    await listener?.close();
  }

  /** Rings stand still until `goOn`. */
  async standStill(): Promise<void> {
    await this.#listener?.suspend();
  }

  async goOn(): Promise<void> {
    await this.#listener?.resume();
  }

  plan(fds: SentFds): SessionPart | null {
    return planMemory(this.#listener, fds, this.#options.label);
  }

  /** Rings stand still, for a successor. Nothing where it is not open. */
  async suspend(fds: SentFds): Promise<EndpointPart> {
    if (this.#listener === null) return { listener: null, session: null };
    return await suspendEndpoint(this.#listener, fds, this.#options.label);
  }

  /** Undoes `suspend`; also what begins the work after `restore`. */
  async resume(config: SocketConfig, host: DeviceHost): Promise<void> {
    if (this.#listener === null) this.listen(config, host);
    await this.goOn();
  }

  /** Lets go of everything without ending or removing it: it is a successor's. */
  async surrender(): Promise<void> {
    this.#prepared?.close();
    this.#adopted?.close();
    await this.#listener?.surrender();
  }

  adopt(memory: SessionPart | null, fds: ReceivedFds): void {
    const { label } = this.#options;
    if (memory !== null) this.#prepared = takeMemory(memory, fds, `the memory of ${label}`);
  }

  /** How many sessions a predecessor had, the one that goes on included. */
  beginWith(sessions: number): void {
    this.#sessionsBefore = sessions;
  }

  /** With what changed last at the predecessor; `beginWith` came before. */
  async restore(
    { listener, session }: EndpointPart,
    config: SocketConfig,
    host: DeviceHost,
    fds: ReceivedFds,
  ): Promise<void> {
    const take = (at: number): Fd => fds.take(at, this.#options.label);
    this.#adopted = take(listener ?? -1);
    if (session === null) return;
    this.#sessionsBefore--;
    const adopt = takeSession(session, take, this.#prepared);
    this.listen(config, host, adopt);
    this.#prepared = null;
    await this.#listener!.adopted;
  }

  /** A guest that broke virtio in this way may not go on. */
  punish(code: number): void {
    const offence = offenceOf(code);
    if (offence !== null) void this.#listener?.session?.close(offence);
  }

  /** Loud again, and what is so now is nothing new. */
  beLoud(): void {
    this.isQuiet = false;
    this.#wasUp = this.state === 'up';
  }

  reportUp(): void {
    if (this.isQuiet) return;
    const up = this.state === 'up';
    if (up === this.#wasUp) return;
    this.#wasUp = up;
    const { kind, report, onReason } = this.#options;
    if (up) onReason(null);
    report(`${kind}-${up ? 'up' : 'down'}`, up ? 'rings run' : 'rings no longer run');
  }

  #endpointEvent(event: EndpointEvent): void {
    if (this.isQuiet) return; // its session changes hands, and neither begins nor ends
    const { report, onReason } = this.#options;
    if (event.kind === 'connected') return report('session-started', 'a front-end connected');
    const { reason } = event;
    if (reason !== null) onReason(reasonOf(reason));
    const kind = event.kind === 'failed' ? 'endpoint-failed' : 'session-ended';
    report(kind, reason?.message ?? 'the front-end disconnected');
  }
}
