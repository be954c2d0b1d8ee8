/**
 * The table of the control API: each row is a route, its documentation and its handler.
 * `control-api.ts` serves it, `openapi.ts` describes it, so neither can be wrong about the other.
 */
import * as z from 'zod';
import { ConfigProblems, describeIssues, placed, type RawProblem } from './config-problem.ts';
import { ApiError } from './api-error.ts';
import {
  MacEntrySchema,
  PortStatusSchema,
  SwitchEventSchema,
  VersionSchema,
  WorkerStatusSchema,
} from './api-schemas.ts';
import { captureStream, eventStream } from './api-stream.ts';
import { parsePort } from './config.ts';
import type { Call, Route } from './api-route.ts';
import { DISK_ROUTES } from './disks/disk-routes.ts';
import { SCSI_ROUTES } from './disks/scsi-routes.ts';
import { HandOverRequestSchema } from './hand-over-format.ts';
import { resolveVlan } from './port-config.ts';
import { PortInput, PortUpdateInput, portName } from './port-input.ts';
import type { PortUpdate } from './switch-control.ts';

/** Longest frame that a capture can ask for; Wireshark's default, above MAX_FRAME_BYTES. */
const MAX_SNAP_BYTES = 262144;

const queryInt = (min: number, max: number, what: string) => {
  const error = `a whole number from ${min} to ${max} (${what})`;
  return z.coerce.number({ error }).int({ error }).min(min, { error }).max(max, { error });
};

const byPort = z.strictObject({ port: portName().optional() });

export const ROUTES: readonly Route[] = [
  {
    id: 'listPorts',
    method: 'GET',
    path: '/v1/ports',
    summary: 'All ports with their state and counters.',
    answers: { 200: { description: 'Ports in order.', schema: z.array(PortStatusSchema) } },
    handle: async ({ control }) => Response.json(await control.ports()),
  },
  {
    id: 'addPort',
    method: 'POST',
    path: '/v1/ports',
    summary: 'Adds a port; the body is a port as in the configuration file.',
    body: PortInput,
    answers: { 201: { description: 'The new port.', schema: PortStatusSchema } },
    errors: [409],
    socketOnly: true,
    async handle({ control, body }) {
      return Response.json(await control.addPort(parsePort(body)), { status: 201 });
    },
  },
  {
    id: 'getPort',
    method: 'GET',
    path: '/v1/ports/{name}',
    summary: 'One port.',
    answers: { 200: { description: 'The port.', schema: PortStatusSchema } },
    errors: [404],
    handle: async ({ control, params }) => Response.json(await control.port(params.name!)),
  },
  {
    id: 'updatePort',
    method: 'PATCH',
    path: '/v1/ports/{name}',
    summary: 'Changes the VLANs, the link or the MTU of a port while it runs.',
    body: PortUpdateInput,
    answers: { 200: { description: 'The port after the change.', schema: PortStatusSchema } },
    errors: [404],
    socketOnly: true,
    async handle({ control, params, body }) {
      return Response.json(await control.updatePort(params.name!, parseUpdate(body)));
    },
  },
  {
    id: 'removePort',
    method: 'DELETE',
    path: '/v1/ports/{name}',
    summary: 'Ends the session of a port and removes it with its socket.',
    answers: { 204: { description: 'The port is gone.' } },
    errors: [404],
    socketOnly: true,
    async handle({ control, params }) {
      await control.removePort(params.name!);
      return new Response(null, { status: 204 });
    },
  },
  {
    id: 'capturePort',
    method: 'GET',
    path: '/v1/ports/{name}/capture',
    summary: 'Frames of a port in both directions as pcapng, until the client closes.',
    query: z.strictObject({
      snapLen: queryInt(14, MAX_SNAP_BYTES, 'bytes kept of each frame').default(MAX_SNAP_BYTES),
    }),
    answers: { 200: { description: 'A pcapng stream.', type: 'application/x-pcapng' } },
    errors: [404, 409, 503],
    socketOnly: true,
    async handle({ control, params, query, captures }) {
      if (captures.full) throw busy('captures');
      const capture = await control.capture(params.name!, { snapLen: query.snapLen as number });
      const headers = { 'content-type': 'application/x-pcapng', 'cache-control': 'no-store' };
      return new Response(captureStream(capture, captures), { headers });
    },
  },
  ...DISK_ROUTES,
  ...SCSI_ROUTES,
  {
    id: 'listMacs',
    method: 'GET',
    path: '/v1/macs',
    summary: 'Learned MAC addresses.',
    query: byPort,
    answers: { 200: { description: 'Entries.', schema: z.array(MacEntrySchema) } },
    errors: [404],
    async handle({ control, query }) {
      const entries = await control.macTable();
      if (!query.port) return Response.json(entries);
      await control.port(query.port as string); // a wrong name is not a port without addresses
      return Response.json(entries.filter((entry) => entry.port === query.port));
    },
  },
  {
    id: 'flushMacs',
    method: 'DELETE',
    path: '/v1/macs',
    summary: 'Forgets learned addresses, of one port or of all.',
    query: byPort,
    answers: {
      200: { description: 'How many.', schema: z.object({ flushed: z.int().min(0) }) },
    },
    errors: [404],
    socketOnly: true,
    async handle({ control, query }) {
      const flushed = await control.flushMacTable(query.port as string | undefined);
      return Response.json({ flushed });
    },
  },
  {
    id: 'listWorkers',
    method: 'GET',
    path: '/v1/workers',
    summary: 'The data-plane workers.',
    answers: { 200: { description: 'Workers.', schema: z.array(WorkerStatusSchema) } },
    handle: async ({ control }) => Response.json(await control.workers()),
  },
  {
    id: 'listEvents',
    method: 'GET',
    path: '/v1/events',
    summary:
      'The last events, oldest first. With follow=1 the events from now on: as server-sent ' +
      'events when the client accepts text/event-stream, else one JSON object per line.',
    query: z.strictObject({
      follow: z.enum(['0', '1'], { error: '0 or 1' }).default('0'),
      last: queryInt(0, 1000, 'events').optional().meta({
        description: 'Only the last N; with follow=1, N past events come first (default 0).',
      }),
    }),
    answers: { 200: { description: 'Events.', schema: z.array(SwitchEventSchema) } },
    errors: [503],
    handle: listEvents,
  },
  {
    id: 'getVersion',
    method: 'GET',
    path: '/v1/version',
    summary: 'What is running.',
    answers: { 200: { description: 'Version.', schema: VersionSchema } },
    handle: ({ version }) => Response.json(version),
  },
  {
    id: 'handOver',
    method: 'POST',
    path: '/v1/hand-over',
    summary: 'Hands the switch over to the process that asks (vring switch --take-over).',
    body: HandOverRequestSchema,
    answers: { 202: { description: 'Begun; how it ends is an event.' } },
    errors: [403, 409],
    socketOnly: true,
    handle({ handOver, body }) {
      const parsed = HandOverRequestSchema.safeParse(body, { reportInput: true });
      if (!parsed.success) {
        throw new ConfigProblems(describeIssues(parsed.error.issues).map((p) => placed(p, null)));
      }
      handOver(parsed.data);
      return new Response(null, { status: 202 });
    },
  },
  {
    id: 'getMetrics',
    method: 'GET',
    path: '/metrics',
    summary: 'Everything that is counted, for Prometheus.',
    answers: { 200: { description: 'Text exposition format.', type: 'text/plain' } },
    async handle({ metrics }) {
      const headers = { 'content-type': metrics.contentType };
      return new Response(await metrics.text(), { headers });
    },
  },
  {
    id: 'getHealth',
    method: 'GET',
    path: '/healthz',
    summary: 'Answers once the switch runs.',
    answers: { 200: { description: 'ok', type: 'text/plain' } },
    errors: [503],
    handle: () => new Response('ok\n'),
  },
];

function parseUpdate(body: unknown) {
  const parsed = PortUpdateInput.safeParse(body, { reportInput: true });
  const raw: RawProblem[] = parsed.success ? [] : describeIssues(parsed.error.issues);
  const { vlan, linkUp, mtu, policy } = parsed.data ?? {};
  const update: { -readonly [K in keyof PortUpdate]: PortUpdate[K] } = {};
  if (policy !== undefined) update.policy = policy;
  if (mtu !== undefined) update.mtu = mtu;
  if (linkUp !== undefined) update.linkUp = linkUp;
  if (vlan !== undefined) {
    update.vlan = resolveVlan(vlan, (keys, problem) => raw.push({ keys, problem }));
  }
  if (raw.length === 0 && Object.keys(update).length === 0) {
    raw.push({ keys: [], problem: 'nothing to change; give vlan, linkUp, mtu or policy' });
  }
  if (raw.length > 0) throw new ConfigProblems(raw.map((p) => placed(p, null)));
  return update;
}

function busy(what: string): ApiError {
  const message = `there are too many open ${what}; close one and try again`;
  return new ApiError(503, 'ERR_VRING_API_BUSY', message);
}

function listEvents({ control, relay, query, accept, followers }: Call): Response {
  const events = control.events();
  const last = query.last as number | undefined;
  if (query.follow !== '1') {
    return Response.json(last === undefined ? events : events.slice(events.length - last));
  }
  if (followers.full) throw busy('event streams');
  const past = last ? events.slice(-last) : [];
  const isSse = accept.includes('text/event-stream');
  const headers = {
    'content-type': isSse ? 'text/event-stream' : 'application/x-ndjson',
    'cache-control': 'no-store',
  };
  const stream = eventStream(relay, past, isSse ? 'sse' : 'lines', followers);
  return new Response(stream, { headers });
}
