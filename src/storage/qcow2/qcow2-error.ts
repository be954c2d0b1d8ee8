import { VringError } from '../../base/errors.ts';

/** An image says what cannot be, or wants what is not done here. A request that meets it: EIO. */
export class Qcow2Error extends VringError {
  /** Description of the layer that the image is in. */
  readonly image: string;
  /** As the specification spells it: `l1_table_offset`, `L2 entry of byte 65536`. */
  readonly field: string;

  constructor(image: string, field: string, problem: string) {
    super('ERR_VRING_QCOW2', `qcow2 image ${image}: ${field} ${problem}`);
    this.image = image;
    this.field = field;
  }
}
