/** The front-end's IOMMU as the back-end sees it: IOTLB_MSG. Section "IOMMU support". */
import type { BackendIotlb, IotlbMapping } from '../base/vhost-backend.ts';
import { IOTLB_INVALIDATE, IOTLB_UPDATE } from '../wire/vhost-user-parse.ts';
import { IotlbMessage } from '../wire/vhost-user.ts';
import type { FrontendCalls } from './frontend-calls.ts';
import { REQUEST } from './message-table.ts';

export class FrontendIotlb implements BackendIotlb {
  readonly asks = true;
  readonly #calls: FrontendCalls;

  constructor(calls: FrontendCalls) {
    this.#calls = calls;
  }

  /**
   * Answers a miss, or tells a translation before it is missed. Resolves when the back-end has it.
   * @throws VringError ERR_VRING_NOT_NEGOTIATED without VIRTIO_F_ACCESS_PLATFORM (bit 33);
   *   ProtocolError ERR_VRING_REFUSED: the user address is not in the memory table.
   */
  update(entry: IotlbMapping): Promise<void> {
    return this.#send({ ...entry, type: IOTLB_UPDATE });
  }

  /**
   * Takes translations back. When it resolves the back-end uses none of them any more: only then
   * may their memory serve something else. The range may be the whole space (0, 2^64 - 1).
   */
  invalidate(iova: bigint, sizeBytes: bigint): Promise<void> {
    return this.#send({ iova, sizeBytes, userAddr: 0n, permissions: 0, type: IOTLB_INVALIDATE });
  }

  #send(message: IotlbMapping & { type: number }): Promise<void> {
    const payload = IotlbMessage.encode({ ...message, padding: new Uint8Array(6) });
    return this.#calls.askAck(REQUEST.IOTLB_MSG, payload);
  }
}
