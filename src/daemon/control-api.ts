/**
 * The control API: HTTP and JSON on a Unix socket, whose file mode says who may use it. On TCP,
 * where every local user may connect, only what reads counters and states is served.
 */
import { createAdaptorServer } from '@hono/node-server';
import { Hono, type Context } from 'hono';
import { bodyLimit } from 'hono/body-limit';
import { rmSync } from 'node:fs';
import type { Server } from 'node:http';
import { ApiError, errorResponse } from './api-error.ts';
import type { Call, Route } from './api-route.ts';
import { ROUTES } from './api-routes.ts';
import type { Version } from './api-schemas.ts';
import { EventRelay, OpenStreams } from './api-stream.ts';
import { describeIssues, ConfigProblems, placed } from './config-problem.ts';
import type { Fd } from '../sys/index.ts';
import { adoptControl, listenControl, listenHttp } from './control-socket.ts';
import { Metrics } from './metrics.ts';
import { openApiDocument } from './openapi.ts';
import type { SwitchControl } from './switch-control.ts';
import type { SwitchConfig } from './switch-types.ts';
import { VERSION } from './version.ts';

/** A port with every option has less than 2 KiB, one with 4094 VLANs 24 KiB. */
const MAX_BODY_BYTES = 64 * 1024;
const MAX_URL_BYTES = 2048;
/** Each capture costs the data plane a copy per frame. */
const MAX_CAPTURES = 16;
const MAX_FOLLOWERS = 64;
const MAX_CONNECTIONS = 256;

/** Whose files may talk: the socket's mode decides, or anybody on this host. */
type Listener = 'socket' | 'tcp';

export class ControlApi {
  readonly #captures = new OpenStreams(MAX_CAPTURES);
  readonly #followers = new OpenStreams(MAX_FOLLOWERS);
  readonly #servers: Server[] = [];
  readonly #ended: Promise<void>[] = [];
  readonly #metrics: Metrics;
  readonly #version: Version;
  readonly #controlPath: string;
  /** Where the control socket listens; null once it was handed over. */
  #listener: Fd | null = null;
  #running: Pick<Call, 'control' | 'relay' | 'handOver'> | null = null;
  /** Address of the TCP listener, with the port that it got. */
  httpAddress: string | null = null;

  private constructor(controlPath: string) {
    this.#controlPath = controlPath;
    this.#metrics = new Metrics(() => this.#attached().control, VERSION);
    this.#version = {
      name: 'vring',
      version: VERSION,
      api: 'v1',
      node: process.version,
      pid: process.pid,
      startedAt: new Date(performance.timeOrigin).toISOString(),
    };
  }

  /**
   * Listens; requests are answered with 503 until `attach`. `adopted` is a control socket that a
   * predecessor listened on; it is the API's from here on.
   */
  static async listen(
    config: Pick<SwitchConfig, 'control' | 'http'>,
    adopted: Fd | null = null,
  ): Promise<ControlApi> {
    const api = new ControlApi(config.control.path);
    try {
      const server = api.#serve('socket');
      if (adopted === null) api.#listener = await listenControl(server, config.control);
      else {
        api.#listener = adopted;
        await adoptControl(server, adopted);
      }
      if (config.http) api.httpAddress = await listenHttp(api.#serve('tcp'), config.http);
    } catch (thrown) {
      if (adopted === null) await api.close();
      else await api.surrender();
      throw thrown;
    }
    return api;
  }

  /** From now on requests are about this switch. */
  attach(control: SwitchControl, handOver: Call['handOver'] = () => undefined): void {
    this.#running = { control, relay: new EventRelay(control), handOver };
  }

  /** Captures and event streams that are open. */
  get openStreams(): number {
    return this.#captures.count + this.#followers.count;
  }

  /** The control socket, to be handed over. */
  get listener(): Fd | null {
    return this.#listener;
  }

  /** Whoever connects from now on waits for a successor. */
  stopListening(): void {
    this.#listener?.close();
    this.#listener = null;
    for (const server of this.#servers) {
      if (!server.listening) continue;
      this.#ended.push(new Promise((resolve) => server.close(() => resolve())));
    }
  }

  /** Ends all streams and leaves the control socket, with who waits there, to a successor. */
  async surrender(): Promise<void> {
    this.stopListening();
    await this.close();
  }

  /** Ends all streams and removes the socket. Idempotent. */
  async close(): Promise<void> {
    if (this.#listener !== null) rmSync(this.#controlPath, { force: true });
    this.#captures.closeAll();
    this.#followers.closeAll();
    this.stopListening();
    for (const server of this.#servers.splice(0)) {
      // Ended streams get a moment to send their end; then whoever still holds on is cut.
      server.closeIdleConnections();
      setTimeout(() => server.closeAllConnections(), 200).unref();
    }
    await Promise.all(this.#ended);
  }

  #attached(): Pick<Call, 'control' | 'relay' | 'handOver'> {
    if (this.#running) return this.#running;
    throw new ApiError(503, 'ERR_VRING_API_STARTING', 'the switch is starting; try again');
  }

  #serve(listener: Listener): Server {
    const app = this.#app(listener);
    const serverOptions = { maxHeaderSize: 16 * 1024, requestTimeout: 10_000 };
    const server = createAdaptorServer({ fetch: app.fetch, serverOptions }) as Server;
    server.maxConnections = MAX_CONNECTIONS;
    this.#servers.push(server);
    return server;
  }

  #app(listener: Listener): Hono {
    const app = new Hono();
    app.onError((error) => errorResponse(error));
    app.use(async (c, next) => {
      checkRequest(c, listener);
      await next();
    });
    const tooLarge = () =>
      errorResponse(
        new ApiError(413, 'ERR_VRING_API_TOO_LARGE', `bodies have at most ${MAX_BODY_BYTES} bytes`),
      );
    app.use(bodyLimit({ maxSize: MAX_BODY_BYTES, onError: tooLarge }));
    app.get('/openapi.json', () => Response.json(openApiDocument(VERSION)));
    for (const route of ROUTES) {
      const path = route.path.replaceAll(/\{(\w+)\}/g, ':$1');
      app.on(route.method, path, async (c) => {
        if (listener === 'tcp' && route.socketOnly) throw notOnTcp(route);
        return route.handle(await this.#call(c, route));
      });
    }
    app.notFound(noRoute);
    return app;
  }

  async #call(c: Context, route: Route): Promise<Call> {
    return {
      ...this.#attached(),
      metrics: this.#metrics,
      version: this.#version,
      captures: this.#captures,
      followers: this.#followers,
      params: c.req.param(),
      query: parseQuery(c, route),
      body: route.body ? parseJson(await c.req.text()) : undefined,
      accept: c.req.header('accept') ?? '',
    };
  }
}

/**
 * On TCP a web page must not reach us: with a name of its own that resolves to 127.0.0.1 it would
 * be "same origin" to the browser, but its name is in Host.
 */
function checkRequest(c: Context, listener: Listener): void {
  if (c.req.url.length > MAX_URL_BYTES) {
    const message = `URLs have at most ${MAX_URL_BYTES} bytes`;
    throw new ApiError(414, 'ERR_VRING_API_TOO_LARGE', message);
  }
  if (listener === 'socket') return;
  const host = c.req.header('host') ?? '';
  if (/^(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?$/.test(host)) return;
  const message = `Host must be localhost or a loopback address, not ${JSON.stringify(host)}`;
  throw new ApiError(403, 'ERR_VRING_API_HOST', message);
}

function notOnTcp(route: Route): ApiError {
  const message = `${route.method} ${route.path} is served on the Unix socket only`;
  return new ApiError(403, 'ERR_VRING_API_SOCKET_ONLY', message);
}

function parseQuery(c: Context, route: Route): Record<string, unknown> {
  if (!route.query) return {};
  const parsed = route.query.safeParse(c.req.query(), { reportInput: true });
  if (parsed.success) return parsed.data;
  const problems = describeQueryIssues(parsed.error.issues, Object.keys(route.query.shape));
  throw new ConfigProblems(problems.map((raw) => placed(raw, null)));
}

/** A query schema is a plain strict object: its unknown keys are named here. */
function describeQueryIssues(
  issues: Parameters<typeof describeIssues>[0],
  known: readonly string[],
) {
  return describeIssues(
    issues.map((issue) =>
      issue.code === 'unrecognized_keys' ? { ...issue, message: JSON.stringify(known) } : issue,
    ),
  );
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    const problem = cause instanceof Error ? cause.message : String(cause);
    throw new ApiError(400, 'ERR_VRING_API_JSON', `the body is not JSON: ${problem}`);
  }
}

/** 405 with the methods that exist, or 404. */
function noRoute(c: Context): Response {
  const methods = ROUTES.filter((route) => {
    const pattern = route.path.replaceAll(/\{\w+\}/g, '[^/]+');
    return new RegExp(`^${pattern}$`).test(c.req.path);
  }).map((route) => route.method);
  if (methods.length === 0) {
    const message = `there is no ${c.req.path}; /openapi.json lists what there is`;
    return errorResponse(new ApiError(404, 'ERR_VRING_API_NOT_FOUND', message));
  }
  const allow = methods.join(', ');
  const message = `${c.req.path} knows ${allow}, not ${c.req.method}`;
  const response = errorResponse(new ApiError(405, 'ERR_VRING_API_METHOD', message));
  response.headers.set('allow', allow);
  return response;
}
