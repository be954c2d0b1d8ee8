/** A disk that is a block device of its own: a worker, and a socket that front-ends come to. */
import { CACHE_WRITEBACK } from '../../devices/blk/index.ts';
import type { ReceivedFds, SentFds } from '../hand-over-channel.ts';
import { Disk, type DiskContext } from './disk.ts';
import { DiskEndpoint } from './disk-endpoint.ts';
import type { DiskFinal, DiskPlan } from './disk-hand-over.ts';
import { diskInput } from './disk-input.ts';
import type { DiskConfig, DiskOrigin, DiskState, DiskStatus } from './disk-types.ts';
import { DiskUnit, type DiskUnitEvent, type DiskUnitOptions } from './disk-unit.ts';
import type { ImageFacts } from './served-unit.ts';

export class BlkDisk extends Disk<DiskConfig, DiskUnit> {
  readonly #endpoint: DiskEndpoint;

  constructor(config: DiskConfig, origin: DiskOrigin, context: DiskContext) {
    super(config, origin, context);
    this.#endpoint = new DiskEndpoint({
      label: this.label,
      kind: 'disk',
      report: context.report,
      onReason: (reason) => (this.failures.reason = reason),
    });
  }

  plan(fds: SentFds): DiskPlan {
    const { facts, origin } = this;
    return { config: diskInput(this.config), origin, facts, memory: this.#endpoint.plan(fds) };
  }

  /** Its rings stand still, and the image is closed: a successor can open it. */
  async suspend(fds: SentFds): Promise<DiskFinal> {
    const { name } = this.config;
    const { sessions } = this.#endpoint;
    if (this.unit === null || !this.#endpoint.isOpen) {
      const { way, ...image } = await this.suspendImage(async () => ({}));
      return { name, sessions, ...image, ...way, listener: null, session: null, writeback: true };
    }
    const { device } = this.unit;
    const { way, ...image } = await this.suspendImage(() => this.#endpoint.suspend(fds));
    const writeback = Atomics.load(device.cache, CACHE_WRITEBACK) === 1;
    return { name, sessions, ...image, ...way, writeback };
  }

  override async resume(): Promise<void> {
    await super.resume();
    this.#endpoint.beLoud();
  }

  override async surrender(): Promise<void> {
    this.isQuiet = true;
    await this.#endpoint.surrender();
    await super.surrender();
  }

  /** Instead of `open`: everything but the image, which the predecessor has. */
  adopt({ facts, memory }: DiskPlan, fds: ReceivedFds): void {
    this.adoptImage(facts);
    if (facts !== null) this.#endpoint.adopt(memory, fds);
  }

  /** With what changed last at the predecessor, which has closed the image. */
  async restore(state: DiskFinal, fds: ReceivedFds): Promise<void> {
    this.#endpoint.beginWith(state.sessions);
    const opened = this.restoreImage(state);
    opened.catch(() => undefined); // whoever waits for it below is told
    const { unit } = this;
    if (unit !== null) {
      Atomics.store(unit.device.cache, CACHE_WRITEBACK, state.writeback ? 1 : 0);
      await this.#endpoint.restore(state, this.config, unit.host, fds);
    }
    await opened;
  }

  protected override get isQuiet(): boolean {
    return super.isQuiet;
  }

  protected override set isQuiet(isQuiet: boolean) {
    super.isQuiet = isQuiet;
    this.#endpoint.isQuiet = isQuiet;
  }

  protected openUnit(): Promise<DiskUnit> {
    return DiskUnit.open(this.#options);
  }

  protected unitWithout(facts: ImageFacts): DiskUnit {
    return DiskUnit.without(this.#options, facts);
  }

  protected begin(unit: DiskUnit): void {
    this.#endpoint.listen(this.config, unit.host);
  }

  protected end(): Promise<void> {
    return this.#endpoint.close();
  }

  protected standStill(): Promise<void> {
    return this.#endpoint.standStill();
  }

  protected goOn(): Promise<void> {
    return this.#endpoint.goOn();
  }

  protected resumeWay(unit: DiskUnit): Promise<void> {
    return this.#endpoint.resume(this.config, unit.host);
  }

  protected get wayState(): DiskState {
    return this.#endpoint.state;
  }

  protected get way(): Pick<DiskStatus, 'unit' | 'socket' | 'queues' | 'sessions'> {
    const { socket, queues } = this.config;
    return { unit: null, socket, queues, sessions: this.#endpoint.sessions };
  }

  protected override unitEvent(event: DiskUnitEvent): void {
    super.unitEvent(event);
    if (event.kind === 'fault') this.#endpoint.punish(event.code);
  }

  get #options(): DiskUnitOptions {
    const { stack, ...rest } = this.unitOptions;
    const { readOnly, queues, serial, blockSize: blockBytes, packed, iommu } = this.config;
    const { secureErase, lifetime } = this.config;
    return {
      ...rest,
      shape: { stack, readOnly, queues, serial, blockBytes, packed, iommu, secureErase, lifetime },
      spinMs: this.context.spinMs,
      onChange: () => this.#endpoint.reportUp(),
    };
  }
}
