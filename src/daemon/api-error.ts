/** Errors of the control API: which status, which body. */
import { ConfigError, messageOf, VringError } from '../base/errors.ts';
import { ConfigProblems } from './config-problem.ts';
import { ERR_DISK_BUSY, ERR_DISK_FAILED } from './disks/disk.ts';
import {
  ERR_DISK_EXISTS,
  ERR_DISK_LIMIT,
  ERR_DISK_NOT_FOUND,
  ERR_SCSI_NOT_FOUND,
  ERR_DISK_OPEN,
} from './disks/disk-control.ts';
import {
  ERR_CAPTURE_BUSY,
  ERR_PORT_EXISTS,
  ERR_PORT_LIMIT,
  ERR_PORT_NOT_FOUND,
} from './switch-control.ts';

/** A request that cannot be served, with its HTTP status. */
export class ApiError extends VringError {
  readonly status: number;
  readonly path: string | undefined;

  constructor(status: number, code: string, message: string, path?: string) {
    super(code, message);
    this.status = status;
    this.path = path;
  }
}

/** What is not in here and no ConfigError is ours or the kernel's failure: 500. */
const STATUS: Readonly<Record<string, number>> = {
  [ERR_PORT_NOT_FOUND]: 404,
  [ERR_PORT_EXISTS]: 409,
  [ERR_PORT_LIMIT]: 409,
  [ERR_CAPTURE_BUSY]: 409,
  [ERR_DISK_NOT_FOUND]: 404,
  [ERR_SCSI_NOT_FOUND]: 404,
  [ERR_DISK_EXISTS]: 409,
  [ERR_DISK_LIMIT]: 409,
  [ERR_DISK_OPEN]: 409,
  [ERR_DISK_BUSY]: 409,
  [ERR_DISK_FAILED]: 409,
  ERR_VRING_DISK_AWAY: 503,
  ERR_VRING_DISK_CONTROL: 409,
  ERR_VRING_DISK_EXPORTS: 409,
  ERR_VRING_DISK_RESIZE: 409,
  ERR_VRING_INTERFACE: 409,
  ERR_VRING_INTERFACE_BUSY: 409,
  ERR_VRING_SOCKET_IN_USE: 409,
  ERR_VRING_SCSI_UNIT: 409,
  ERR_VRING_XDP: 409,
  ERR_VRING_CLOSED: 503,
};

export type ErrorBody = {
  error: {
    code: string;
    message: string;
    path?: string;
    problems?: { path: string; problem: string }[];
  };
};

export function errorResponse(thrown: unknown): Response {
  const code = thrown instanceof VringError ? thrown.code : 'ERR_VRING_API_INTERNAL';
  const body: ErrorBody = { error: { code, message: messageOf(thrown) } };
  let status = STATUS[code] ?? 500;
  if (thrown instanceof ApiError) {
    status = thrown.status;
    if (thrown.path !== undefined) body.error.path = thrown.path;
  } else if (thrown instanceof ConfigError) {
    status = 400;
    body.error.path = thrown.path;
  }
  if (thrown instanceof ConfigProblems && thrown.problems.length > 1) {
    body.error.problems = thrown.problems.map(({ path, problem }) => ({ path, problem }));
  }
  return Response.json(body, { status });
}
