#!/usr/bin/env node
/** `vring disk` as a program of its own: what the discovery file names (see disk.ts). */
process.argv.splice(2, 0, 'disk');
await import('./main.ts');
