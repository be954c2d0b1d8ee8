/**
 * A layer as an NBD export, on a Unix socket or, where somebody says so, on TCP: for `qemu-nbd`,
 * `nbdcopy`, `nbdinfo`, the kernel's `nbd-client`. It runs on the layer's own thread, beside its
 * device, and never closes the layer.
 *
 * NBD has no users: who can connect reads and writes the disk. A Unix socket has permissions, TLS
 * has certificates of clients.
 */
import { rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { ConfigError, messageOf, VringError } from '../../base/errors.ts';
import { type Fd, listenUnix } from '../../sys/index.ts';
import {
  NBD_FLAG_CAN_MULTI_CONN,
  NBD_FLAG_HAS_FLAGS,
  NBD_FLAG_READ_ONLY,
  NBD_FLAG_SEND_DF,
  NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_FUA,
  NBD_FLAG_SEND_TRIM,
  NBD_FLAG_SEND_WRITE_ZEROES,
  NBD_MAX_STRING_BYTES,
} from '../../wire/nbd.ts';
import type { Layer } from '../layer/layer.ts';
import { type ExportCounters, ServerConnection } from './server-connection.ts';
import { ExportTls, type ExportTlsOptions } from './server-tls.ts';

const SECTOR_BYTES = 512;

/** `nbdcopy` opens four; each may hold 32 MiB of requests. */
const DEFAULT_MAX_CONNECTIONS = 16;

export type NbdExportOptions = {
  readonly at:
    | { readonly socket: string; readonly mode?: number }
    | { readonly host: string; readonly port: number };
  /** What clients ask for; the empty name always means this export, too. */
  readonly name?: string;
  readonly readOnly?: boolean;
  readonly maxConnections?: number;
  /** Left out: in the clear. */
  readonly tls?: ExportTlsOptions;
};

export type NbdExportStatus = ExportCounters & {
  /** Where clients find it. */
  readonly uri: string;
  readonly connections: number;
  readonly refusedConnections: number;
};

export class NbdExport {
  readonly #layer: Layer;
  readonly #options: NbdExportOptions;
  readonly #tls: ExportTls | null;
  readonly #server: Server;
  readonly #connections = new Set<ServerConnection>();
  readonly #counters: ExportCounters = {
    requests: 0,
    failedRequests: 0,
    readBytes: 0,
    writtenBytes: 0,
    badClients: 0,
  };
  #listener: Fd | null = null;
  #refused = 0;
  #closing: Promise<void> | null = null;
  #uri = '';

  /**
   * @throws ConfigError: name, limit, files of TLS.
   * @throws VringError ERR_VRING_SOCKET_..., ERR_VRING_NBD_LISTEN.
   */
  static async start(layer: Layer, options: NbdExportOptions): Promise<NbdExport> {
    const { name = '', maxConnections = DEFAULT_MAX_CONNECTIONS } = options;
    if (Buffer.byteLength(name) > NBD_MAX_STRING_BYTES) {
      throw new ConfigError('name', `has ${Buffer.byteLength(name)} bytes, 4096 are possible`);
    }
    if (!Number.isInteger(maxConnections) || maxConnections < 1 || maxConnections > 1024) {
      throw new ConfigError('maxConnections', `${maxConnections}, expected 1 to 1024`);
    }
    const result = new NbdExport(layer, options);
    await result.#listen();
    return result;
  }

  private constructor(layer: Layer, options: NbdExportOptions) {
    this.#layer = layer;
    this.#options = options;
    this.#tls = options.tls === undefined ? null : new ExportTls(options.tls);
    this.#server = createServer((socket) => this.#accept(socket));
  }

  status(): NbdExportStatus {
    return {
      ...this.#counters,
      uri: this.#uri,
      connections: this.#connections.size,
      refusedConnections: this.#refused,
    };
  }

  /** Idempotent. Ends all connections; resolves when no request uses the layer any more. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    const { at } = this.#options;
    this.#server.close();
    this.#listener?.close();
    if ('socket' in at) rmSync(at.socket, { force: true });
    const connections = [...this.#connections];
    for (const connection of connections) connection.close();
    await Promise.all(connections.map(({ ended }) => ended));
  }

  async #listen(): Promise<void> {
    const { at, name = '' } = this.#options;
    const path = encodeURIComponent(name);
    const scheme = this.#tls === null ? 'nbd' : 'nbds';
    try {
      if ('socket' in at) {
        this.#listener = listenUnix(at.socket, { mode: at.mode ?? 0o600 });
        await listening(this.#server, { fd: this.#listener.dup().take() });
        this.#uri = `${scheme}+unix:///${path}?socket=${encodeURIComponent(at.socket)}`;
        return;
      }
      await listening(this.#server, at);
      const bound = this.#server.address();
      const port = typeof bound === 'object' && bound !== null ? bound.port : at.port;
      const host = at.host.includes(':') ? `[${at.host}]` : at.host;
      this.#uri = `${scheme}://${host}:${port}/${path}`;
    } catch (cause) {
      this.#listener?.close();
      if (cause instanceof VringError) throw cause;
      const where = 'socket' in at ? at.socket : `${at.host}:${at.port}`;
      const text = `cannot export on ${where}: ${messageOf(cause)}`;
      throw new VringError('ERR_VRING_NBD_LISTEN', text, { cause });
    }
  }

  #accept(socket: Socket): void {
    const { maxConnections = DEFAULT_MAX_CONNECTIONS, name = '' } = this.#options;
    if (this.#connections.size >= maxConnections || this.#closing !== null) {
      this.#refused++;
      socket.destroy();
      return;
    }
    socket.setNoDelay(true);
    const layer = this.#layer;
    const readOnly = layer.readOnly || (this.#options.readOnly ?? false);
    const connection = new ServerConnection(socket, {
      layer,
      readOnly,
      counters: this.#counters,
      tls: this.#tls,
      facts: {
        name,
        description: 'vring disk',
        sizeBytes: layer.sizeBytes,
        flags: flagsOf(readOnly),
        blockBytes: layer.blockBytes ?? SECTOR_BYTES,
      },
    });
    this.#connections.add(connection);
    void connection.ended.finally(() => this.#connections.delete(connection));
  }
}

/** All connections use one layer, so a flush on one covers what completed on all: multi-conn. */
function flagsOf(readOnly: boolean): number {
  const reads =
    NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_DF | NBD_FLAG_CAN_MULTI_CONN;
  if (readOnly) return reads | NBD_FLAG_READ_ONLY;
  return reads | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES;
}

function listening(
  server: Server,
  at: { fd: number } | { host: string; port: number },
): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(at, () => {
      server.off('error', reject);
      resolve();
    });
  });
}
