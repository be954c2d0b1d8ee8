/** One workload over every data path of the machine. Names only; no logic here. */
export {
  compare,
  type CompareOptions,
  type Comparison,
  type PathResult,
  type PathSummary,
  type SizeSummary,
} from './comparison.ts';
export { type Figures, type LoopFigures, type RoundTripFigures, type Spread } from './figures.ts';
export type { ComparedPath, PathDescription, PathId } from './path.ts';
export { PATHS, vdpaDevice } from './paths.ts';
export { htmlReport } from './report-html.ts';
export { columnTitles, machineLine, notes, type Row, tableRows } from './rows.ts';
