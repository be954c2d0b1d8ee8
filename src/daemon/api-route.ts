/** What a row of the table of routes is: see api-routes.ts. */
import type * as z from 'zod';
import type { Version } from './api-schemas.ts';
import type { EventRelay, OpenStreams } from './api-stream.ts';
import type { HandOverRequest } from './hand-over-format.ts';
import type { Metrics } from './metrics.ts';
import type { SwitchControl } from './switch-control.ts';

/** What a handler gets. */
export type Call = {
  readonly control: SwitchControl;
  readonly metrics: Metrics;
  readonly version: Version;
  readonly relay: EventRelay;
  /** Begins to hand the switch over; throws what it refuses. */
  readonly handOver: (request: HandOverRequest) => void;
  readonly captures: OpenStreams;
  readonly followers: OpenStreams;
  /** Checked parts of the request. */
  readonly params: Readonly<Record<string, string>>;
  readonly query: Readonly<Record<string, unknown>>;
  /** Parsed JSON, or undefined without a body. */
  readonly body: unknown;
  readonly accept: string;
};

export type Answer = {
  readonly description: string;
  /** Absent: no body. */
  readonly schema?: z.ZodType;
  /** Media type when it is not JSON. */
  readonly type?: string;
};

export type Route = {
  readonly id: string;
  readonly method: 'GET' | 'POST' | 'PATCH' | 'DELETE';
  /** As OpenAPI writes it. */
  readonly path: string;
  readonly summary: string;
  readonly query?: z.ZodObject;
  readonly body?: z.ZodType;
  readonly answers: Readonly<Record<number, Answer>>;
  /** Error statuses that the route can give, besides 400 and 500. */
  readonly errors?: readonly number[];
  /** Not on TCP, where the mode of a socket file cannot say who may. */
  readonly socketOnly?: boolean;
  handle(call: Call): Promise<Response> | Response;
};
