/**
 * Watches a front-end through up to three sessions: one that it may end as it likes, one that we
 * end (does it come back?), and one whose memory is refused. The latter two need a front-end that
 * can be started again (`spawn`), or that reconnects.
 */
import { rmSync } from 'node:fs';
import { REQUEST } from '../vhost-user/index.ts';
import { acceptUnix, connectUnix, type Fd, listenUnix } from '../sys/index.ts';
import { SysError } from '../base/errors.ts';
import type { Check, CheckResult } from './check.ts';
import { FRONT_END_DEVICES, type FrontEndDevice } from './front-end-devices.ts';
import { FRONT_END_RULES, type FrontEndRule } from './front-end-rules.ts';
import { FrontEndSession } from './front-end-session.ts';
import { PROFILES, type DeviceProfile } from './profiles.ts';
import { makeReport, type Report } from './report.ts';
import { Respawner } from './respawn.ts';
import { Transcript } from './transcript.ts';
import { selected } from './applies.ts';

export type FrontEndRun = {
  readonly socket: string;
  readonly device: string;
  /** We connect; the front-end listens. */
  readonly connect?: boolean;
  /** How long to watch a session once its rings run. */
  readonly seconds?: number;
  /** Shell command that starts the front-end. */
  readonly spawn?: string;
  readonly only?: readonly string[];
  readonly reproduce?: (check: Check) => string;
};

/** A front-end in a virtual machine needs its time until a driver runs. */
const START_MS = 40_000;
const RETURN_MS = 5000;
const REFUSAL_MS = 4000;

export async function runFrontEnd(options: FrontEndRun): Promise<Report> {
  const run = new Run(options);
  try {
    return await run.all();
  } finally {
    await run.end();
  }
}

class Run {
  readonly #options: FrontEndRun;
  readonly #device: FrontEndDevice;
  readonly #spawned: Respawner | null;
  readonly #findings = { exercised: new Set<string>(), broken: new Map<string, string>() };
  readonly #transcript = new Transcript(2000);
  #listener: Fd | null = null;
  #acked = { features: 0n, protocolFeatures: 0n };

  constructor(options: FrontEndRun) {
    this.#options = options;
    this.#device = FRONT_END_DEVICES[options.device] as FrontEndDevice;
    this.#spawned = options.spawn === undefined ? null : new Respawner(options.spawn);
  }

  async end(): Promise<void> {
    await this.#spawned?.stop();
    if (this.#listener === null) return;
    this.#listener.close();
    rmSync(this.#options.socket, { force: true });
  }

  async all(): Promise<Report> {
    const { socket, device, connect = false } = this.#options;
    const startedAt = new Date();
    const start = performance.now();
    if (!connect) this.#listener = listenUnix(socket);
    await this.#first();
    await this.#left();
    if (this.#spawned !== null) await this.#refused();
    const results = FRONT_END_RULES.map((rule) => this.#result(rule)).filter(({ check }) =>
      selected(check, this.#options.only ?? []),
    );
    const profile = { ...(PROFILES[device] as DeviceProfile) };
    return makeReport({
      side: 'front-end',
      socket,
      level: 'full',
      startedAt,
      milliseconds: performance.now() - start,
      offer: { ...this.#acked, profile },
      results,
      reproduce: this.#options.reproduce ?? ((each) => each.id),
    });
  }

  #note(text: string): void {
    this.#transcript.add('-', text);
  }

  /** Waits for the front-end; null when it does not come. */
  async #meet(withinMs: number): Promise<Fd | null> {
    const deadline = performance.now() + withinMs;
    for (;;) {
      const socket = this.#tryMeet();
      if (socket !== null) return socket;
      if (performance.now() > deadline) return null;
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }

  #tryMeet(): Fd | null {
    if (this.#listener !== null) return acceptUnix(this.#listener.number);
    try {
      return connectUnix(this.#options.socket);
    } catch (error) {
      if (error instanceof SysError) return null;
      throw error;
    }
  }

  #session(socket: Fd, refuseMemory = false): FrontEndSession {
    return new FrontEndSession(socket, {
      device: this.#device,
      findings: this.#findings,
      transcript: this.#transcript,
      refuseMemory,
    });
  }

  /** A whole session: start, work, and where we started the front-end also an end in order. */
  async #first(): Promise<void> {
    this.#spawned?.ensure();
    this.#note('first session: as the front-end likes it');
    const socket = await this.#meet(START_MS);
    if (socket === null) {
      const said = this.#spawned === null ? '' : `; it said: ${this.#spawned.output}`;
      throw new Error(`no front-end came to ${this.#options.socket} within ${START_MS} ms${said}`);
    }
    const session = this.#session(socket);
    const { watch } = session;
    let ended = await session.serve(this.#patience(session));
    this.#acked = {
      features: watch.features ?? 0n,
      protocolFeatures: watch.protocolFeatures ?? 0n,
    };
    if (!ended) await session.configChange();
    if (!ended && this.#spawned !== null) {
      this.#note('the front-end is asked to end (SIGTERM)');
      const stopped = this.#spawned.stop();
      const deadline = performance.now() + RETURN_MS;
      ended = await session.serve(() => performance.now() > deadline);
      await stopped;
    }
    watch.conclude(ended);
    session.close();
  }

  /** True once rings ran for the time that was asked for, or never do. */
  #patience(session: FrontEndSession): () => boolean {
    const { seconds = 5 } = this.#options;
    const giveUp = performance.now() + START_MS;
    let since: number | null = null;
    return () => {
      if (since === null && session.watch.runningVrings > 0) since = performance.now();
      if (since !== null) return performance.now() > since + 1000 * seconds;
      return performance.now() > giveUp;
    };
  }

  /** We go. Does it come back, and does it begin anew? */
  async #left(): Promise<void> {
    if (this.#spawned !== null) {
      await this.#spawned.stop();
      this.#spawned.ensure();
      this.#note('second session: the back-end goes');
      const socket = await this.#meet(START_MS);
      if (socket === null) return;
      const session = this.#session(socket);
      const running = performance.now() + START_MS;
      await session.serve(() => session.watch.runningVrings > 0 || performance.now() > running);
      this.#note('we close the connection');
      session.close();
    }
    const again = await this.#meet(RETURN_MS);
    const { exercised, broken } = this.#findings;
    exercised.add('FE-END-001');
    if (again === null) broken.set('FE-END-001', `it did not come back within ${RETURN_MS} ms`);
    else await this.#anew(again);
    await this.#spawned?.stop();
  }

  async #anew(socket: Fd): Promise<void> {
    this.#note('the front-end is there again');
    const session = this.#session(socket);
    const deadline = performance.now() + 2000;
    const { asked } = session.watch;
    const anew = (): boolean => asked.has(REQUEST.GET_FEATURES.id);
    await session.serve(() => anew() || performance.now() > deadline);
    session.watch.judge('FE-END-002', anew(), 'it did not ask for features again');
    session.close();
  }

  /** Memory is refused: does it kick rings all the same? */
  async #refused(): Promise<void> {
    this.#spawned?.ensure();
    this.#note('third session: memory is refused');
    const socket = await this.#meet(START_MS);
    if (socket === null) return;
    const session = this.#session(socket, true);
    const giveUp = performance.now() + START_MS;
    let since: number | null = null;
    await session.serve(() => {
      if (session.refused > 0) since ??= performance.now();
      if (since !== null) return performance.now() > since + REFUSAL_MS;
      return session.watch.runningVrings > 0 || performance.now() > giveUp;
    });
    if (session.refused > 0) {
      const why = 'it kicked a ring after its memory was refused';
      session.watch.judge('FE-NACK-001', !session.kickedAfterRefusal, why);
    }
    session.close();
    await this.#spawned?.stop();
  }

  #result(rule: FrontEndRule): CheckResult {
    const { occasion, ...rest } = rule;
    const check: Check = { ...rest, level: 'full', needs: {}, run: async () => {} };
    const common = { check, critical: false, milliseconds: 0, transcript: this.#transcript };
    const why = this.#findings.broken.get(rule.id);
    if (why !== undefined) return { ...common, verdict: 'fail', detail: why };
    const empty = new Transcript();
    if (this.#findings.exercised.has(rule.id)) {
      return { ...common, transcript: empty, verdict: 'pass', detail: '' };
    }
    return { ...common, transcript: empty, verdict: 'not applicable', detail: occasion };
  }
}
