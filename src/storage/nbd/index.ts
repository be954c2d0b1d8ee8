/** NBD both ways: any server as a disk, any disk as a server. */
export { NbdError, type NbdErrorCode } from './nbd-error.ts';
export { NbdExport, type NbdExportOptions, type NbdExportStatus } from './nbd-export.ts';
export { type NbdLayer, type NbdLayerOptions, openNbdLayer } from './nbd-layer.ts';
export { parseExport } from './parse-export.ts';
export type { ExportTlsOptions } from './server-tls.ts';
export { type NbdAddress, parseNbdUri } from './nbd-uri.ts';
