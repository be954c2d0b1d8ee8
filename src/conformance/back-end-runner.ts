/**
 * Runs checks against a back-end, one after the other, each on connections of its own.
 *
 * After each check the back-end must still serve: with a live process, a new connection answers
 * GET_FEATURES; after a destructive check a request must pass through a ring, too. A back-end
 * that does not is dead because of that check, which fails as critical. With a respawn command
 * it is started again and the run goes on; without, it gets some time to come back, and then the
 * remaining checks say that they could not be judged.
 */
import type { Check, CheckResult, Level, Offer, Verdict } from './check.ts';
import { CheckFailed, NotApplicable } from './check.ts';
import { inLevel, selected, whyNot } from './applies.ts';
import { CheckContext, DEFAULT_PATIENCE, openPeer, type Patience, PeerGone } from './context.ts';
import { BACK_END_CHECKS } from './back-end-checks.ts';
import type { DeviceProfile } from './profiles.ts';
import { makeReport, type Report } from './report.ts';
import { describeEnd, Respawner } from './respawn.ts';
import { Transcript } from './transcript.ts';

export type BackEndRun = {
  readonly socket: string;
  readonly profile: DeviceProfile;
  readonly level?: Level;
  /** Ids, or beginnings of ids up to a dash. */
  readonly only?: readonly string[];
  /** Shell command that starts the back-end in the foreground. */
  readonly respawn?: string;
  readonly patience?: Partial<Patience>;
  /** Instead of the catalogue. */
  readonly checks?: readonly Check[];
  readonly onResult?: (result: CheckResult) => void;
  /** How to run one check alone, for the report. */
  readonly reproduce?: (check: Check) => string;
};

/** No check waits longer than this, whatever the peer does. */
const MAX_CHECK_MS = 30_000;

export async function runBackEnd(options: BackEndRun): Promise<Report> {
  const run = new Run(options);
  try {
    return await run.all();
  } finally {
    await run.end();
  }
}

class Run {
  readonly #options: BackEndRun;
  readonly #patience: Patience;
  readonly #peer: Respawner | null;
  /** It ends by itself when a session does: then an exit is no death, only a signal is. */
  #oneSession = false;
  /** Why nobody answers any more. */
  #gone: string | null = null;

  constructor(options: BackEndRun) {
    this.#options = options;
    this.#patience = { ...DEFAULT_PATIENCE, ...options.patience };
    this.#peer = options.respawn === undefined ? null : new Respawner(options.respawn);
  }

  async end(): Promise<void> {
    await this.#peer?.stop();
  }

  async all(): Promise<Report> {
    const { socket, level = 'full', only = [], checks = BACK_END_CHECKS } = this.#options;
    const startedAt = new Date();
    const start = performance.now();
    const offer = await this.#probe();
    const chosen = checks.filter((each) => inLevel(each, level) && selected(each, only));
    const results: CheckResult[] = [];
    for (const each of chosen) {
      const result = await this.#one(each, offer);
      results.push(result);
      this.#options.onResult?.(result);
    }
    return makeReport({
      side: 'back-end',
      socket,
      level,
      startedAt,
      milliseconds: performance.now() - start,
      offer,
      results,
      reproduce: this.#options.reproduce ?? ((each) => each.id),
    });
  }

  async #probe(): Promise<Offer> {
    this.#peer?.ensure();
    // The first start of a back-end may take its time: huge pages, devices.
    const { connectMs, answerMs } = this.#patience;
    const patience = {
      connectMs: Math.max(connectMs, 15_000),
      answerMs: Math.max(answerMs, 10_000),
    };
    const { socket } = this.#options;
    const peer = await openPeer(socket, new Transcript(), patience, () => this.#failIfEnded());
    try {
      const protocolFeatures = await peer.askProtocolFeatures();
      return { features: peer.offered, protocolFeatures, profile: this.#options.profile };
    } finally {
      peer.close();
      for (let n = 0; n < 30 && this.#peer?.running; n++) await sleep(10);
      this.#oneSession = this.#peer !== null && !this.#peer.running;
    }
  }

  async #one(each: Check, offer: Offer): Promise<CheckResult> {
    const transcript = new Transcript();
    const start = performance.now();
    const result = (verdict: Verdict, detail: string, critical = false): CheckResult => {
      const milliseconds = performance.now() - start;
      return { check: each, verdict, detail, critical, milliseconds, transcript };
    };
    const missing = whyNot(each, offer);
    if (missing !== null) return result('not applicable', missing);
    this.#peer?.ensure();
    if (this.#gone !== null && this.#peer === null) return result('error', this.#gone);
    const context = new CheckContext(this.#options.socket, offer, this.#patience, transcript, () =>
      this.#revive(),
    );
    let [verdict, detail] = await judge(each, context);
    context.close();
    const death = await this.#death(each, offer, transcript);
    if (death === null) return result(verdict, detail);
    if (verdict === 'pass') detail = death;
    else detail = `${detail}; ${death}`;
    return result('fail', detail, true);
  }

  /** Null while the back-end lives; otherwise what became of it. */
  async #death(each: Check, offer: Offer, transcript: Transcript): Promise<string | null> {
    const peer = this.#peer;
    if (this.#endedAsItDoes()) return null;
    if (each.level === 'destructive') peer?.ensure();
    const { socket } = this.#options;
    const alive = new CheckContext(socket, offer, this.#patience, transcript, () =>
      this.#failIfEnded(),
    );
    try {
      transcript.add('-', 'does it still serve?');
      if (each.level === 'destructive' && offer.profile.request !== null) {
        await alive.work(await alive.start());
      } else {
        await alive.connect();
      }
      return null;
    } catch (error) {
      if (this.#endedAsItDoes()) return null;
      return this.#buried(error as Error);
    } finally {
      alive.close();
      await nextTurn();
    }
  }

  /** A back-end of one session has ended as it should: the next session needs a new one. */
  #revive(): void {
    if (this.#endedAsItDoes()) this.#peer?.ensure();
    else this.#failIfEnded();
  }

  #endedAsItDoes(): boolean {
    return this.#oneSession && this.#peer?.end?.signal === null;
  }

  /** @throws PeerGone when the process is gone: waiting for it is idle. */
  #failIfEnded(): void {
    const end = this.#peer?.end ?? null;
    if (end !== null) throw new PeerGone(`the back-end ${describeEnd(end)}`);
  }

  async #buried(error: Error): Promise<string> {
    const peer = this.#peer;
    if (peer === null) {
      this.#gone = `the back-end does not serve any more: ${error.message}`;
      return `afterwards ${error.message}`;
    }
    for (let n = 0; n < 20 && peer.running; n++) await sleep(10); // dying takes a moment
    const wasRunning = peer.running;
    const how = peer.end === null ? '' : describeEnd(peer.end);
    const said = peer.output.split('\n').slice(-3).join(' | ');
    await peer.stop();
    if (wasRunning) return `afterwards ${error.message}; it was restarted`;
    return `the back-end ${how} and was restarted${said === '' ? '' : ` (it said: ${said})`}`;
  }
}

async function judge(each: Check, context: CheckContext): Promise<[Verdict, string]> {
  let timer: NodeJS.Timeout | undefined;
  const tooLong = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => {
      reject(new Error(`the check took longer than ${MAX_CHECK_MS} ms`));
    }, MAX_CHECK_MS);
  });
  try {
    const running = each.run(context);
    running.catch(() => {}); // may fail later than the timer
    await Promise.race([running, tooLong]);
    return ['pass', ''];
  } catch (error) {
    const { message } = error as Error;
    if (error instanceof NotApplicable) return ['not applicable', message];
    if (error instanceof PeerGone) return ['error', message];
    if (error instanceof CheckFailed) return ['fail', message];
    return ['error', `the runner could not judge: ${message}`];
  } finally {
    clearTimeout(timer);
  }
}

function sleep(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

function nextTurn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
