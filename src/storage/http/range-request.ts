/**
 * One GET of a range of bytes, with all that a server may do wrong with it. What comes back is
 * exactly what was asked for, or an HttpError.
 */
import { Agent as HttpAgent, type IncomingMessage, request as requestHttp } from 'node:http';
import { Agent as HttpsAgent, request as requestHttps } from 'node:https';
import { HttpError } from './http-error.ts';
import type { Signer } from './s3-location.ts';

const MAX_REDIRECTS = 5;
const MAX_HEADER_BYTES = 16_384;
/** Of what a server says beside an error; enough for the code of S3. */
const MAX_ERROR_BYTES = 2048;
/** Nothing comes for so long: the attempt is over, another one may do better. */
const IDLE_TIMEOUT_MS = 10_000;

export type RangeRequest = {
  readonly url: URL;
  readonly at: number;
  readonly sizeBytes: number;
  readonly headers: Readonly<Record<string, string>>;
  readonly sign: Signer | null;
  readonly agents: Agents;
  /** All redirects included. */
  readonly timeoutMs: number;
};

export type RangeReply = {
  readonly bytes: Buffer;
  readonly totalBytes: number;
  readonly etag: string | null;
  readonly lastModified: string | null;
};

export type Agents = { readonly http: HttpAgent; readonly https: HttpsAgent };

export function createAgents(maxSockets: number, ca?: string | Buffer): Agents {
  const options = { keepAlive: true, maxSockets, scheduling: 'lifo' as const };
  return {
    http: new HttpAgent(options),
    https: new HttpsAgent({ ...options, ...(ca === undefined ? {} : { ca }) }),
  };
}

/** @throws HttpError. */
export async function requestRange(request: RangeRequest): Promise<RangeReply> {
  const deadline = AbortSignal.timeout(Math.max(1, Math.ceil(request.timeoutMs)));
  let { url } = request;
  for (let redirects = 0; ; redirects++) {
    const message = await send(request, url, deadline);
    const { statusCode = 0, headers } = message;
    if (statusCode < 300 || statusCode > 399) return receive(request, message);
    message.destroy();
    url = redirected(request, url, headers.location, statusCode, redirects);
  }
}

/** For messages: what may be secret in a URL is left out. */
export function shownUrl(url: URL): string {
  return `${url.protocol}//${url.host}${url.pathname}${url.search === '' ? '' : '?...'}`;
}

function send(request: RangeRequest, url: URL, deadline: AbortSignal): Promise<IncomingMessage> {
  const { at, sizeBytes, agents, sign } = request;
  const plain = {
    ...request.headers,
    range: `bytes=${at}-${at + sizeBytes - 1}`,
    'accept-encoding': 'identity',
  };
  const headers = sign === null ? plain : sign(url, plain);
  const isSecure = url.protocol === 'https:';
  const options = { headers, maxHeaderSize: MAX_HEADER_BYTES, signal: deadline };
  return new Promise((resolve, reject) => {
    const outgoing = isSecure
      ? requestHttps(url, { ...options, agent: agents.https })
      : requestHttp(url, { ...options, agent: agents.http });
    outgoing.setTimeout(IDLE_TIMEOUT_MS, () => {
      const text = `nothing came from ${url.host} for ${IDLE_TIMEOUT_MS / 1000} s`;
      outgoing.destroy(new HttpError('ERR_VRING_HTTP_TIMEOUT', text, { recovery: 'retry' }));
    });
    outgoing.on('error', (cause) => reject(transportError(url, cause)));
    outgoing.on('response', resolve);
    outgoing.end();
  });
}

function transportError(url: URL, cause: Error & { code?: string }): HttpError {
  if (cause instanceof HttpError) return cause;
  const isLate = cause.name === 'AbortError' || cause.name === 'TimeoutError';
  const code = isLate ? 'ERR_VRING_HTTP_TIMEOUT' : 'ERR_VRING_HTTP_CONNECT';
  const what = isLate ? 'no whole answer in time' : cause.message || (cause.code ?? 'it failed');
  return new HttpError(code, `${url.host}: ${what}`, { recovery: 'retry', cause });
}

function redirected(
  request: RangeRequest,
  url: URL,
  location: string | undefined,
  status: number,
  redirects: number,
): URL {
  const fail = (problem: string): never => {
    throw new HttpError(
      'ERR_VRING_HTTP_REDIRECT',
      `${shownUrl(url)}: status ${status}: ${problem}`,
    );
  };
  if (location === undefined) return fail('a redirect to nowhere');
  const next = URL.parse(location, url) ?? fail('a redirect to what is no URL');
  // A signature is for one host; S3 says so where region or endpoint is the wrong one.
  if (request.sign !== null) fail(`the object is at ${next.host}: correct endpoint or region`);
  if (redirects >= MAX_REDIRECTS) fail(`more than ${MAX_REDIRECTS} redirects`);
  if (!/^https?:$/.test(next.protocol)) fail(`a redirect to ${next.protocol}`);
  if (url.protocol === 'https:' && next.protocol === 'http:') fail('a redirect to plain http');
  return next;
}

async function receive(request: RangeRequest, message: IncomingMessage): Promise<RangeReply> {
  const url = request.url;
  try {
    const { statusCode = 0, headers } = message;
    if (statusCode !== 206) throw await statusError(request, message, statusCode);
    const encoding = headers['content-encoding'] ?? 'identity';
    if (encoding !== 'identity') throw wrong(url, `the encoding ${encoding}, none was asked for`);
    const totalBytes = checkRange(request, headers['content-range']);
    const length = headers['content-length'];
    if (length !== undefined && Number(length) !== request.sizeBytes) {
      throw wrong(url, `a body of ${length} bytes, asked for were ${request.sizeBytes}`);
    }
    const bytes = await body(request, message);
    const { etag = null, 'last-modified': lastModified = null } = headers;
    return { bytes, totalBytes, etag, lastModified };
  } catch (error) {
    message.destroy();
    if (error instanceof HttpError) throw error;
    throw transportError(url, error as Error);
  }
}

function wrong(url: URL, what: string): HttpError {
  return new HttpError('ERR_VRING_HTTP_BODY', `${shownUrl(url)}: the server sent ${what}`);
}

/** How large the object is. */
function checkRange({ url, at, sizeBytes }: RangeRequest, header: string | undefined): number {
  const match = /^bytes (\d{1,16})-(\d{1,16})\/(\d{1,16})$/i.exec(header ?? '');
  if (match === null) throw wrong(url, `the Content-Range '${(header ?? 'none').slice(0, 100)}'`);
  const [first, last, total] = match.slice(1).map(Number) as [number, number, number];
  if (!Number.isSafeInteger(total)) throw wrong(url, `an object of ${match[3]} bytes`);
  if (total < at + sizeBytes) {
    const text = `${shownUrl(url)} has ${total} bytes, up to ${at + sizeBytes} were to be read`;
    throw new HttpError('ERR_VRING_HTTP_CHANGED', text);
  }
  const isAsked = first === at && last === at + sizeBytes - 1 && last < total;
  if (isAsked) return total;
  throw wrong(url, `bytes ${first}-${last}/${total}, asked for were ${at}-${at + sizeBytes - 1}`);
}

async function body({ url, sizeBytes }: RangeRequest, message: IncomingMessage): Promise<Buffer> {
  const bytes = Buffer.allocUnsafe(sizeBytes);
  let done = 0;
  for await (const chunk of message as AsyncIterable<Buffer>) {
    if (done + chunk.length > sizeBytes)
      throw wrong(url, `more than the ${sizeBytes} bytes asked for`);
    bytes.set(chunk, done);
    done += chunk.length;
  }
  if (done === sizeBytes && message.complete) return bytes;
  const text = `${shownUrl(url)}: the body ended after ${done} of ${sizeBytes} bytes`;
  throw new HttpError('ERR_VRING_HTTP_BODY', text, { recovery: 'retry' });
}

/** What may be gone in a moment: overload, a gateway, a restart. */
function isPassing(status: number): boolean {
  return status === 408 || status === 429 || status >= 500;
}

async function statusError(
  { url, sizeBytes }: RangeRequest,
  message: IncomingMessage,
  status: number,
): Promise<HttpError> {
  const where = shownUrl(url);
  if (status === 200) {
    const text = `${where}: the server has no ranges: asked for ${sizeBytes} bytes it sends all`;
    return new HttpError('ERR_VRING_HTTP_RANGES', text);
  }
  if (status === 412) return new HttpError('ERR_VRING_HTTP_CHANGED', `${where} has changed`);
  if (status === 416) {
    const text = `${where}: it is shorter than it was, or empty (416)`;
    return new HttpError('ERR_VRING_HTTP_CHANGED', text);
  }
  const code = /<Code>(\w{1,64})<\/Code>/.exec(await beginning(message))?.[1];
  const text = `${where}: status ${status}${code === undefined ? '' : ` (${code})`}`;
  const options = isPassing(status) ? { recovery: 'retry' as const } : {};
  return new HttpError('ERR_VRING_HTTP_STATUS', text, options);
}

async function beginning(message: IncomingMessage): Promise<string> {
  const parts: Buffer[] = [];
  let sizeBytes = 0;
  for await (const chunk of message as AsyncIterable<Buffer>) {
    parts.push(chunk);
    sizeBytes += chunk.length;
    if (sizeBytes >= MAX_ERROR_BYTES) break;
  }
  return Buffer.concat(parts).toString('latin1', 0, MAX_ERROR_BYTES);
}
