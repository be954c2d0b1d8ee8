/** A command that makes requests of its own to the engine, one after the other. */
import { ringOfId } from '../disk/flight.ts';
import type { Command } from './command.ts';
import type { ScsiFlight } from './scsi-vring.ts';

/** One request; `segments` are arena offsets and lengths. */
export type Step = {
  readonly op: number;
  readonly at: number;
  readonly sizeBytes: number;
  readonly segments: readonly (readonly [offset: number, len: number])[];
  readonly flags?: number;
};

/** Gives requests, is given their status (0 or -errno), and puts what comes of it into the row. */
export type Steps = Generator<Step, void, number>;

/** WORK_BYTES that are a job's while it runs. */
export type Scratch = { readonly offset: number; readonly bytes: Uint8Array };

/** Bytes of the medium. */
export type ByteRange = { readonly at: number; readonly sizeBytes: number };

/** A row of a request queue. */
export type Task = { readonly flight: ScsiFlight; readonly row: number };

export type JobOptions = {
  /** Nobody else changes these while it is under way; left out: it does not mind. */
  readonly holds?: ByteRange;
  /** It begins when these have ended; of those that change what it holds it knows by itself. */
  readonly after?: readonly Task[];
  /** Left out: it only waits. Called with the command's copy. */
  readonly steps?: (command: Command, scratch: Scratch) => Steps;
};

export class Job {
  readonly command: Command;
  readonly options: JobOptions;
  /** What it waits for: rows, and jobs that hold what it is to hold. */
  after: Task[];
  blockers: Job[];
  /** Number of its scratch memory, -1 while it waits. */
  slot = -1;
  steps: Steps | null = null;
  /** What the unit's batch had no room for. */
  step: Step | null = null;
  hasEnded = false;

  constructor(command: Command, options: JobOptions, after: Task[], blockers: Job[]) {
    this.command = command;
    this.options = options;
    this.after = after;
    this.blockers = blockers;
  }

  /** What it waited for has ended. */
  get isFree(): boolean {
    this.after = this.after.filter(({ flight, row }) => flight.pending[row]! > 0);
    this.blockers = this.blockers.filter((job) => !job.hasEnded);
    return this.after.length === 0 && this.blockers.length === 0;
  }

  holds({ at, sizeBytes }: ByteRange): boolean {
    const { holds } = this.options;
    if (holds === undefined) return false;
    return at < holds.at + holds.sizeBytes && holds.at < at + sizeBytes;
  }
}

/** Requests of a command that the engine has not seen: they wait for jobs to end. */
export type Held = Task & {
  readonly id: number;
  readonly requests: Step[];
  readonly blockers: readonly Job[];
};

export const ringOf = ({ command }: Job): number => ringOfId(command.idBase);
