/** A reporter for node's test runner: prints each file that has a failed test, one a line. */
type TestEvent = { readonly type: string; readonly data: { readonly file?: string } };

export default async function* failedFiles(
  source: AsyncIterable<TestEvent>,
): AsyncGenerator<string> {
  const seen = new Set<string>();
  for await (const { type, data } of source) {
    if (type !== 'test:fail' || data.file === undefined || seen.has(data.file)) continue;
    seen.add(data.file);
    yield `${data.file}\n`;
  }
}
