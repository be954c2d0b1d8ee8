/** A server of one object for tests, which behaves as it is told to. */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { createServer as createSecure, type ServerOptions } from 'node:https';
import type { AddressInfo } from 'node:net';

export type FakeObject = { bytes: Buffer; etag: string | null; lastModified: string | null };

type Handler = (request: IncomingMessage, response: ServerResponse) => void;

export class FakeServer {
  readonly object: FakeObject;
  /** Ranges that were asked for. */
  readonly ranges: string[] = [];
  readonly paths: string[] = [];
  /** In place of the honest answer, until it returns false. */
  intercept: ((request: IncomingMessage, response: ServerResponse) => boolean) | null = null;
  underWay = 0;
  mostUnderWay = 0;
  delayMs = 0;
  /** Whether If-Match is looked at. */
  looksAtTags = true;
  readonly #server: Server;
  readonly #scheme: string;

  static async start(bytes: Buffer, tls: ServerOptions | null = null): Promise<FakeServer> {
    const server = new FakeServer(bytes, tls);
    await new Promise<void>((resolve) => server.#server.listen(0, '127.0.0.1', resolve));
    return server;
  }

  private constructor(bytes: Buffer, tls: ServerOptions | null) {
    this.object = { bytes, etag: '"v1"', lastModified: 'Thu, 01 Jan 2026 00:00:00 GMT' };
    const handler: Handler = (request, response) => void this.#handle(request, response);
    this.#server = tls === null ? createServer(handler) : createSecure(tls, handler);
    this.#scheme = tls === null ? 'http' : 'https';
  }

  get origin(): string {
    const { port } = this.#server.address() as AddressInfo;
    return `${this.#scheme}://127.0.0.1:${port}`;
  }

  get url(): string {
    return `${this.origin}/disk.img`;
  }

  close(): void {
    this.#server.close();
    this.#server.closeAllConnections();
  }

  async #handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    this.ranges.push(request.headers.range ?? 'none');
    this.paths.push(request.url ?? '');
    this.underWay++;
    response.on('close', () => this.underWay--);
    this.mostUnderWay = Math.max(this.mostUnderWay, this.underWay);
    if (this.delayMs > 0) await new Promise((resolve) => setTimeout(resolve, this.delayMs));
    if (this.intercept?.(request, response) !== true) this.answer(request, response);
  }

  /** What an honest server sends; `change` may alter headers and body. */
  answer(
    request: IncomingMessage,
    response: ServerResponse,
    change: (headers: Record<string, string>, body: Buffer) => Buffer = (_, body) => body,
  ): void {
    const { bytes, etag, lastModified } = this.object;
    const match = request.headers['if-match'];
    if (this.looksAtTags && match !== undefined && match !== etag) {
      response.writeHead(412).end();
      return;
    }
    const [, first, last] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '') ?? [];
    if (first === undefined || Number(first) >= bytes.length) {
      response.writeHead(416).end();
      return;
    }
    const end = Math.min(Number(last) + 1, bytes.length);
    const headers: Record<string, string> = {
      'content-range': `bytes ${first}-${end - 1}/${bytes.length}`,
    };
    if (etag !== null) headers['etag'] = etag;
    if (lastModified !== null) headers['last-modified'] = lastModified;
    const body = change(headers, bytes.subarray(Number(first), end));
    response.writeHead(206, headers).end(body);
  }
}
