/**
 * A client of QEMU's machine protocol (QMP) on a Unix socket. Format: QEMU,
 * docs/interop/qmp-spec.rst: one JSON object per line, a greeting, then commands by id.
 */
import { connect, type Socket } from 'node:net';
import { VringError } from '../base/errors.ts';

export type QmpEvent = { readonly event: string; readonly data: Readonly<Record<string, unknown>> };
type Reply = {
  QMP?: unknown;
  id?: number;
  return?: unknown;
  error?: { class: string; desc: string };
  event?: string;
  data?: Record<string, unknown>;
};
type Waiting = { resolve: (value: unknown) => void; reject: (error: Error) => void };

export class QmpClient {
  readonly #socket: Socket;
  readonly #waiting = new Map<number, Waiting>();
  readonly #onEvent: (event: QmpEvent) => void;
  #buffer = '';
  #nextId = 1;
  #failure: Error | null = null;

  private constructor(socket: Socket, onEvent: (event: QmpEvent) => void) {
    this.#socket = socket;
    this.#onEvent = onEvent;
    socket.setEncoding('utf8');
    socket.on('data', (text: string) => this.#receive(text));
    socket.on('error', (error) => this.#fail(error));
    socket.on('close', () => this.#fail(new Error('connection closed')));
  }

  /** Connects and leaves the negotiation mode. */
  static async connect(
    path: string,
    onEvent: (event: QmpEvent) => void = () => {},
  ): Promise<QmpClient> {
    const socket = connect(path);
    await new Promise<void>((resolve, reject) => {
      socket.once('connect', resolve);
      socket.once('error', reject);
    });
    const client = new QmpClient(socket, onEvent);
    await client.execute('qmp_capabilities');
    return client;
  }

  /** @throws VringError `ERR_VRING_QMP` when QEMU refuses or goes away. */
  execute(command: string, args: Readonly<Record<string, unknown>> = {}): Promise<unknown> {
    if (this.#failure !== null) return Promise.reject(this.#failure);
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#socket.write(`${JSON.stringify({ execute: command, arguments: args, id })}\n`);
    });
  }

  /** One line of the human monitor, its answer as text. */
  async human(command: string): Promise<string> {
    const args = { 'command-line': command };
    return String(await this.execute('human-monitor-command', args)).replaceAll('\r', '');
  }

  close(): void {
    this.#socket.destroy();
  }

  #receive(text: string): void {
    this.#buffer += text;
    for (;;) {
      const end = this.#buffer.indexOf('\n');
      if (end < 0) return;
      const line = this.#buffer.slice(0, end);
      this.#buffer = this.#buffer.slice(end + 1);
      if (line.trim() !== '') this.#handle(JSON.parse(line) as Reply);
    }
  }

  #handle(reply: Reply): void {
    if (reply.event !== undefined) {
      this.#onEvent({ event: reply.event, data: reply.data ?? {} });
      return;
    }
    if (reply.id === undefined) return; // the greeting
    const waiting = this.#waiting.get(reply.id);
    this.#waiting.delete(reply.id);
    if (reply.error === undefined) waiting?.resolve(reply.return);
    else waiting?.reject(new VringError('ERR_VRING_QMP', reply.error.desc));
  }

  #fail(cause: Error): void {
    this.#failure ??= new VringError('ERR_VRING_QMP', `QMP: ${cause.message}`, { cause });
    for (const waiting of this.#waiting.values()) waiting.reject(this.#failure);
    this.#waiting.clear();
  }
}
