import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseExport } from './parse-export.ts';

test('places, names, and who may do what', () => {
  const known: Record<string, unknown> = {
    'unix:/run/a.nbd': { at: { socket: '/run/a.nbd' } },
    './a.nbd,read-only': { at: { socket: './a.nbd' }, readOnly: true },
    'unix:/s,mode=0660,name=a b,max=4,read-only=off': {
      at: { socket: '/s', mode: 0o660 },
      name: 'a b',
      readOnly: false,
      maxConnections: 4,
    },
    'tcp:127.0.0.1:0': { at: { host: '127.0.0.1', port: 0 } },
    'tcp:[::1]:10809,read-only,name=x,,y': {
      at: { host: '::1', port: 10809 },
      name: 'x,y',
      readOnly: true,
    },
    'tcp:h:1,tls-certificate=/c,tls-key=/k,tls-ca=/a': {
      at: { host: 'h', port: 1 },
      tls: { certificate: '/c', key: '/k', ca: '/a', required: true },
    },
    'tcp:h:1,tls-psk=/p,tls=allowed': {
      at: { host: 'h', port: 1 },
      tls: { psk: '/p', required: false },
    },
  };
  for (const [text, expected] of Object.entries(known)) {
    assert.deepEqual(parseExport(text, '--export'), expected, text);
  }
});

test('what is wrong is said with what was expected', () => {
  for (const [text, message] of [
    ['udp:h:1', /'udp' is no place for an export; expected is unix:PATH or tcp:HOST:PORT/],
    ['unix:', /unix needs a path/],
    ['unix:/s,mode=9', /mode=9, expected is octal/],
    ['tcp:localhost', /'localhost', expected is HOST:PORT/],
    ['tcp:h:70000', /'h:70000', expected is HOST:PORT/],
    ['tcp:::1:5', /expected is HOST:PORT/],
    ['tcp:h:1,mode=0600', /tcp has no option mode/],
    ['unix:/s,read-only=maybe', /read-only=maybe, expected on, off/],
    ['unix:/s,tls=required', /tls=required needs tls-certificate and tls-key, or tls-psk/],
    ['unix:/s,max=x', /max=x is no number/],
  ] as const) {
    assert.throws(() => parseExport(text, '--export'), { code: 'ERR_VRING_CONFIG', message }, text);
  }
});
