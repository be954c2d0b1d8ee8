/** Objects on HTTP servers and in S3 as read-only disks. */
export { HttpError, type HttpErrorCode } from './http-error.ts';
export { type HttpLayer, type HttpLayerOptions, openHttpLayer } from './http-layer.ts';
