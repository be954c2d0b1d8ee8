import { readFileSync } from 'node:fs';

const manifest = new URL('../../package.json', import.meta.url);

/** Version of the package; the file is beside `src/` and beside `dist/`. */
export const VERSION: string = JSON.parse(readFileSync(manifest, 'utf8')).version;
