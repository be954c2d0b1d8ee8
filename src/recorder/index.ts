/** Recording what a front-end and a back-end say to each other, and replaying it. */
export { decodeMessage, type DecodedMessage } from './decode.ts';
export * from './limits.ts';
export * from './recorded-event.ts';
export { Recording, type RecordingOptions } from './recording.ts';
export { Recorder, type RecorderEvent, type RecorderOptions } from './recorder.ts';
export { type Difference } from './compare.ts';
export { readRecording, type RecordingFile } from './recording-file.ts';
export {
  replayRecording,
  type ReplayNote,
  type ReplayOptions,
  type ReplayReport,
  type SessionReport,
} from './replay.ts';
