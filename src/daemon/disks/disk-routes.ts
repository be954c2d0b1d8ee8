/** The part of the table of routes that is about disks; see api-routes.ts. */
import * as z from 'zod';
import type { FaultRule } from '../../storage/index.ts';
import { ConfigProblems, placed } from '../config-problem.ts';
import type { Route } from '../api-route.ts';
import {
  CommitInput,
  CutInput,
  DiskInput,
  DiskUpdateInput,
  ExportInput,
  FaultsInput,
  parseDisk,
  parseInput,
  RollbackInput,
  SnapshotInput,
} from './disk-input.ts';
import { CutResultSchema, DiskStatusSchema } from './disk-schemas.ts';
import type { DiskUpdate, RollbackOptions } from './disk-types.ts';

const disk = (description: string) => ({ description, schema: DiskStatusSchema });
const answer = (description: string) => ({ description, schema: z.unknown() });

/** What is done to a disk that may not be there, or in no state for it. */
const CHANGE = { errors: [404, 409], socketOnly: true } as const;

/** What layers answer may be nothing. */
const answered = (value: unknown): Response => Response.json(value ?? null);

export const DISK_ROUTES: readonly Route[] = [
  {
    id: 'listDisks',
    method: 'GET',
    path: '/v1/disks',
    summary: 'All disks with their state and counters.',
    answers: { 200: { description: 'Disks in order.', schema: z.array(DiskStatusSchema) } },
    handle: async ({ control }) => Response.json(await control.disks.disks()),
  },
  {
    id: 'addDisk',
    method: 'POST',
    path: '/v1/disks',
    summary: 'Adds a disk, which is remembered; the body is a disk as in the configuration file.',
    body: DiskInput,
    answers: { 201: disk('The new disk.') },
    errors: [409],
    socketOnly: true,
    async handle({ control, body }) {
      return Response.json(await control.disks.addDisk(parseDisk(body)), { status: 201 });
    },
  },
  {
    id: 'getDisk',
    method: 'GET',
    path: '/v1/disks/{name}',
    summary: 'One disk.',
    answers: { 200: disk('The disk.') },
    errors: [404],
    handle: async ({ control, params }) => Response.json(await control.disks.disk(params.name!)),
  },
  {
    id: 'updateDisk',
    method: 'PATCH',
    path: '/v1/disks/{name}',
    summary: 'Changes the limits or the size of a disk while it is served.',
    body: DiskUpdateInput,
    answers: { 200: disk('The disk after the change.') },
    ...CHANGE,
    async handle({ control, params, body }) {
      return Response.json(await control.disks.updateDisk(params.name!, parseUpdate(body)));
    },
  },
  {
    id: 'removeDisk',
    method: 'DELETE',
    path: '/v1/disks/{name}',
    summary: 'Ends the session of a disk and removes it with its socket; its image stays.',
    answers: { 204: { description: 'The disk is gone.' } },
    errors: [404],
    socketOnly: true,
    async handle({ control, params }) {
      await control.disks.removeDisk(params.name!);
      return new Response(null, { status: 204 });
    },
  },
  {
    id: 'reopenDisk',
    method: 'POST',
    path: '/v1/disks/{name}/reopen',
    summary: 'Opens the image anew: now, where it had failed; under its session, where it had not.',
    answers: { 200: disk('The disk, which works.') },
    ...CHANGE,
    async handle({ control, params }) {
      return Response.json(await control.disks.reopenDisk(params.name!));
    },
  },
  {
    id: 'listSnapshots',
    method: 'GET',
    path: '/v1/disks/{name}/snapshots',
    summary: 'Snapshots of a disk with an overlay, as the overlay tells them.',
    answers: { 200: answer('Snapshots.') },
    errors: [404, 409],
    handle: async ({ control, params }) => answered(await control.disks.snapshots(params.name!)),
  },
  {
    id: 'addSnapshot',
    method: 'POST',
    path: '/v1/disks/{name}/snapshots',
    summary: 'Makes a snapshot while the disk is served. Only what the guest has written is in it.',
    body: SnapshotInput,
    answers: { 200: answer('What the overlay says of it.') },
    ...CHANGE,
    async handle({ control, params, body }) {
      const { name } = parseInput(SnapshotInput, body);
      return answered(await control.disks.snapshot(params.name!, name));
    },
  },
  {
    id: 'deleteSnapshot',
    method: 'DELETE',
    path: '/v1/disks/{name}/snapshots/{snapshot}',
    summary: 'Deletes a snapshot: what it holds is merged into what came after it.',
    answers: { 200: answer('What the overlay says.') },
    ...CHANGE,
    async handle({ control, params }) {
      const { name, snapshot } = params;
      return answered(await control.disks.deleteSnapshot(name!, snapshot!));
    },
  },
  {
    id: 'rollbackDisk',
    method: 'POST',
    path: '/v1/disks/{name}/rollback',
    summary:
      'Drops what was written since a snapshot; refused under a driver, unless force is set.',
    body: RollbackInput,
    answers: { 200: answer('What the overlay says.') },
    ...CHANGE,
    async handle({ control, params, body }) {
      const options = parseInput(RollbackInput, body) as RollbackOptions;
      return answered(await control.disks.rollback(params.name!, options));
    },
  },
  {
    id: 'commitDisk',
    method: 'POST',
    path: '/v1/disks/{name}/commit',
    summary: 'Merges what was written into what is below, in the background.',
    body: CommitInput,
    answers: { 200: answer('What the overlay says.') },
    ...CHANGE,
    async handle({ control, params, body }) {
      const { to } = parseInput(CommitInput, body);
      return answered(await control.disks.commit(params.name!, to));
    },
  },
  {
    id: 'getCommit',
    method: 'GET',
    path: '/v1/disks/{name}/commit',
    summary: 'How far the last commit of a disk is.',
    answers: { 200: answer('What the overlay says.') },
    errors: [404, 409],
    handle: async ({ control, params }) => answered(await control.disks.commitStatus(params.name!)),
  },
  {
    id: 'exportDisk',
    method: 'POST',
    path: '/v1/disks/{name}/export',
    summary: 'Serves the disk by NBD, too, instead of where it was exported before.',
    body: ExportInput,
    answers: { 200: disk('The disk, with the URI of the export.') },
    ...CHANGE,
    async handle({ control, params, body }) {
      const wanted = parseInput(ExportInput, body);
      return Response.json(await control.disks.exportDisk(params.name!, wanted));
    },
  },
  {
    id: 'endExport',
    method: 'DELETE',
    path: '/v1/disks/{name}/export',
    summary: 'Ends the NBD export of a disk.',
    answers: { 200: disk('The disk.') },
    ...CHANGE,
    async handle({ control, params }) {
      return Response.json(await control.disks.exportDisk(params.name!, null));
    },
  },
  {
    id: 'setFaults',
    method: 'POST',
    path: '/v1/disks/{name}/faults',
    summary: 'Other rules for the fault layer of a disk that has one; for tests.',
    body: FaultsInput,
    answers: { 204: { description: 'They are in force.' } },
    ...CHANGE,
    async handle({ control, params, body }) {
      const { rules } = parseInput(FaultsInput, body);
      await control.disks.setFaults(params.name!, rules as readonly FaultRule[]);
      return new Response(null, { status: 204 });
    },
  },
  {
    id: 'cutDisk',
    method: 'POST',
    path: '/v1/disks/{name}/cut',
    summary: 'Cuts the power of a disk with a volatile cache: it fails until reopened; for tests.',
    body: CutInput,
    answers: {
      200: { description: 'What became of unflushed requests.', schema: CutResultSchema },
    },
    ...CHANGE,
    async handle({ control, params, body }) {
      const { seed } = parseInput(CutInput, body);
      return Response.json(await control.disks.cutPower(params.name!, seed));
    },
  },
];

function parseUpdate(body: unknown): DiskUpdate {
  const update = parseInput(DiskUpdateInput, body);
  if (update.limits !== undefined || update.sizeBytes !== undefined) return update as DiskUpdate;
  const problem = 'nothing to change; give limits or sizeBytes';
  throw new ConfigProblems([placed({ keys: [], problem }, null)]);
}
