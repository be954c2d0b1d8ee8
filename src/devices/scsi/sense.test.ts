/** Sense data: what is encoded is what drivers decode. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as scsi from '../../wire/scsi.ts';
import { encodeSense, IN_PARAMETERS, NONE, senseOfErrno } from './sense.ts';

test('sense data say the same in both formats', () => {
  for (const asDescriptors of [false, true]) {
    const sense = (information: number, field: number) =>
      scsi.decodeSense(encodeSense(scsi.SENSE_READ_ERROR, information, field, asDescriptors));
    const base = { key: 3, asc: 0x11, ascq: 0, information: null, field: null };
    assert.deepEqual(sense(NONE, NONE), base);
    assert.deepEqual(sense(7, NONE), { ...base, information: 7 });
    assert.deepEqual(sense(NONE, 0), { ...base, field: { inCdb: true, byte: 0 } });
    const inList = { inCdb: false, byte: 300 };
    assert.deepEqual(sense(7, IN_PARAMETERS | 300), { ...base, information: 7, field: inList });
  }
});

test('a LBA that fixed format has no room for is told by descriptors alone', () => {
  const far = 2 ** 40 + 5;
  const fixed = encodeSense(scsi.SENSE_WRITE_ERROR, far, NONE, false);
  assert.equal(scsi.decodeSense(fixed)?.information, null);
  const described = encodeSense(scsi.SENSE_WRITE_ERROR, far, NONE, true);
  assert.equal(scsi.decodeSense(described)?.information, far);
});

test('what is no sense data is null, and what is cut short is not read over', () => {
  const whole = encodeSense(scsi.SENSE_LBA, 5, 2, true);
  for (let size = 0; size < whole.length; size++) {
    const sense = scsi.decodeSense(whole.slice(0, size));
    assert.ok(sense === null || sense.asc === 0x21);
  }
  assert.equal(scsi.decodeSense(new Uint8Array(18)), null);
});

test('every error number of the medium has a sense', () => {
  assert.equal(senseOfErrno(-5, true), scsi.SENSE_READ_ERROR);
  assert.equal(senseOfErrno(-5, false), scsi.SENSE_WRITE_ERROR);
  assert.equal(senseOfErrno(-28, false), scsi.SENSE_SPACE);
  assert.equal(senseOfErrno(-110, true), scsi.SENSE_TIMEOUT);
  assert.equal(senseOfErrno(-13, true), scsi.SENSE_TARGET_FAILURE);
});
