'use strict';
/*
 * Compiles native/*.c into one Node-API addon with `cc`, in a few tenths of a second.
 *
 *   node native/build.cjs             postinstall: build/vring.node in a checkout, nothing where
 *                                     a prebuild loads, and never a failed install elsewhere
 *   node native/build.cjs --force     build/vring.node, unconditionally
 *   node native/build.cjs --prebuild  prebuilds/linux-<arch>/vring.node, for the tarball
 *
 * The addon's loader (src/sys/native.ts) requires this file to build on first use.
 */
const { execFileSync } = require('node:child_process');
const { createHash } = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');

const ROOT = path.resolve(__dirname, '..');
const LOCAL = path.join(ROOT, 'build', 'vring.node');
const ABI = path.join(ROOT, 'build', 'abi.node'); // layouts from the kernel's headers, for a test
const PREBUILD = path.join(ROOT, 'prebuilds', `linux-${process.arch}`, 'vring.node');

const FLAGS = [
  '-std=gnu11',
  '-O2',
  '-g0',
  '-Wall',
  '-Wextra',
  '-fPIC',
  '-shared',
  '-fvisibility=hidden',
  // The fault handler stays installed when the last worker that loaded the addon ends.
  '-Wl,-z,nodelete',
  '-Wl,-s',
];

function sources() {
  const names = fs.readdirSync(__dirname).filter((name) => /\.[ch]$/.test(name));
  return names.sort().map((name) => path.join(__dirname, name));
}

/** Changes whenever a build would come out differently. */
function key() {
  const hash = createHash('sha256');
  hash.update(JSON.stringify([FLAGS, process.arch, process.env.CFLAGS ?? '']));
  for (const file of sources()) hash.update(fs.readFileSync(file)).update('\0');
  return hash.digest('hex').slice(0, 16);
}

function addonFiles() {
  return sources().filter((file) => file.endsWith('.c') && path.basename(file) !== 'abi.c');
}

/** Folder of node_api.h, or null. */
function headers() {
  try {
    const found = require.resolve('node-api-headers/package.json', { paths: [ROOT] });
    return path.join(path.dirname(found), 'include');
  } catch {
    // Not installed: the running Node may have been installed with its own headers.
  }
  const own = path.resolve(process.execPath, '..', '..', 'include', 'node');
  return fs.existsSync(path.join(own, 'node_api.h')) ? own : null;
}

/** Compiles to `output`; throws an Error whose message says what to do. */
function compile(output, files = addonFiles()) {
  const include = headers();
  if (include === null) {
    throw new Error('node_api.h is missing: npm install node-api-headers');
  }
  const compiler = process.env.CC || 'cc';
  const temporary = `${output}.${process.pid}.tmp`;
  fs.mkdirSync(path.dirname(output), { recursive: true });
  const extra = (process.env.CFLAGS ?? '').split(/\s+/).filter((flag) => flag !== '');
  const args = [...FLAGS, ...extra, `-I${include}`, '-o', temporary, ...files];
  try {
    execFileSync(compiler, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  } catch (error) {
    fs.rmSync(temporary, { force: true });
    if (error.code === 'ENOENT') {
      throw new Error(`no C compiler (${compiler}): apt-get install build-essential`, {
        cause: error,
      });
    }
    throw new Error(`${compiler} failed:\n${error.stderr ?? error.message}`, { cause: error });
  }
  fs.renameSync(temporary, output); // other processes may be loading the old one
}

function readOr(file, otherwise) {
  try {
    return fs.readFileSync(file, 'utf8');
  } catch {
    return otherwise;
  }
}

/** Makes build/vring.node current. Returns its path; throws when that cannot be. */
function ensureLocal(force = false) {
  const stamp = `${LOCAL}.key`;
  const wanted = key();
  if (!force && fs.existsSync(LOCAL) && readOr(stamp, '') === wanted) return LOCAL;
  compile(LOCAL);
  fs.writeFileSync(stamp, wanted);
  return LOCAL;
}

/** Builds the addon of layouts, for test/abi.test.ts. Returns its path. */
function ensureAbi() {
  const stamp = `${ABI}.key`;
  const wanted = key();
  if (fs.existsSync(ABI) && readOr(stamp, '') === wanted) return ABI;
  compile(ABI, [path.join(__dirname, 'abi.c')]);
  fs.writeFileSync(stamp, wanted);
  return ABI;
}

/** Builds into the user's cache, for an installed package without a fitting prebuild. */
function ensureCached() {
  const cache = process.env.XDG_CACHE_HOME || path.join(require('node:os').homedir(), '.cache');
  const output = path.join(cache, 'vring', `vring-${process.arch}-${key()}.node`);
  if (!fs.existsSync(output)) compile(output);
  return output;
}

/** A checkout builds for itself; an installed package has no .git and sits in node_modules. */
function isCheckout() {
  return fs.existsSync(path.join(ROOT, '.git')) || fs.existsSync(path.join(ROOT, 'tsconfig.json'));
}

function loads(file) {
  try {
    return fs.existsSync(file) && typeof require(file) === 'object';
  } catch {
    return false;
  }
}

function main(args) {
  if (process.platform !== 'linux') return;
  if (args.includes('--prebuild')) {
    compile(PREBUILD);
    console.log(`built ${path.relative(ROOT, PREBUILD)}`);
    return;
  }
  const force = args.includes('--force');
  if (!force && !isCheckout() && loads(PREBUILD)) return;
  try {
    ensureLocal(force);
  } catch (error) {
    console.error(`vring: the native addon was not built: ${error.message}`);
    if (isCheckout()) process.exitCode = 1;
    else console.error('vring: it will be built on first use, once a C compiler is there');
  }
}

module.exports = { LOCAL, PREBUILD, ensureAbi, ensureCached, ensureLocal, isCheckout, key };
if (require.main === module) main(process.argv.slice(2));
