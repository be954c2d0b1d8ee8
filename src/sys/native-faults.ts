/** For tests: the addon's functions as another kernel, or a medium that interrupts, has them. */
import { type Native, native } from './native.ts';

/** Before the rest of `sys` is imported, which keeps some of them. */
export function replaceNative<K extends keyof Native>(
  name: K,
  make: (real: Native[K]) => Native[K],
): void {
  const value = make(native[name]);
  Object.defineProperty(native, name, { value, writable: true, configurable: true });
}
