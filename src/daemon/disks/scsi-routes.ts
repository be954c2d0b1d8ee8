/** The part of the table of routes that is about SCSI adapters; their units have those of disks. */
import * as z from 'zod';
import type { Route } from '../api-route.ts';
import { DiskStatusSchema, AdapterStatusSchema } from './disk-schemas.ts';
import { AdapterInput, parseAdapter, parseUnit, UnitInput } from './scsi-input.ts';

const adapter = (description: string) => ({ description, schema: AdapterStatusSchema });

export const SCSI_ROUTES: readonly Route[] = [
  {
    id: 'listAdapters',
    method: 'GET',
    path: '/v1/scsi',
    summary: 'All SCSI adapters with their state and counters.',
    answers: { 200: { description: 'Adapters in order.', schema: z.array(AdapterStatusSchema) } },
    handle: async ({ control }) => Response.json(await control.disks.adapters()),
  },
  {
    id: 'addAdapter',
    method: 'POST',
    path: '/v1/scsi',
    summary:
      'Adds a SCSI adapter, which is remembered; the body is one as in the configuration file.',
    body: AdapterInput,
    answers: { 201: adapter('The new adapter.') },
    errors: [409],
    socketOnly: true,
    async handle({ control, body }) {
      return Response.json(await control.disks.addAdapter(parseAdapter(body)), { status: 201 });
    },
  },
  {
    id: 'getAdapter',
    method: 'GET',
    path: '/v1/scsi/{name}',
    summary: 'One SCSI adapter.',
    answers: { 200: adapter('The adapter.') },
    errors: [404],
    handle: async ({ control, params }) => Response.json(await control.disks.adapter(params.name!)),
  },
  {
    id: 'removeAdapter',
    method: 'DELETE',
    path: '/v1/scsi/{name}',
    summary: 'Ends the session of an adapter and removes it with its socket; images stay.',
    answers: { 204: { description: 'The adapter is gone.' } },
    errors: [404],
    socketOnly: true,
    async handle({ control, params }) {
      await control.disks.removeAdapter(params.name!);
      return new Response(null, { status: 204 });
    },
  },
  {
    id: 'attachUnit',
    method: 'POST',
    path: '/v1/scsi/{name}/units',
    summary:
      'Attaches a unit, which is remembered; the guest finds it. It is a disk, and ' +
      'DELETE /v1/disks/{name}:{target}:{lun} detaches it.',
    body: UnitInput,
    answers: { 201: { description: 'The unit, as a disk.', schema: DiskStatusSchema } },
    errors: [404, 409],
    socketOnly: true,
    async handle({ control, params, body }) {
      const { name } = await control.disks.adapter(params.name!);
      const disk = await control.disks.attachUnit(name, parseUnit(body, name));
      return Response.json(disk, { status: 201 });
    },
  },
];
