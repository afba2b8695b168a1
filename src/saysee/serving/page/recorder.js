// The microphone: from pressing to a recording in whatever format this browser makes.

const FORMATS = ["audio/webm;codecs=opus", "audio/mp4;codecs=mp4a.40.2", "audio/mp4"]; // the first that there is

const DROP = "Or drop a recording on this page instead: that needs no microphone.";

/** What to tell somebody whose microphone did not open. */
export function explain(error) {
  switch (error.name) {
    case "InsecureContextError":
      return (
        "Browsers give the microphone only to pages that come over HTTPS or from this very machine. Open the page as " +
        `http://localhost:${location.port || 80}, or start the server with --cert and --key. ${DROP}`
      );
    case "NotAllowedError":
    case "SecurityError":
      return (
        "This page may not use the microphone. Allow it at the sign beside the page's address (and in the system's " +
        `settings for the browser), then press again. ${DROP}`
      );
    case "NotFoundError":
    case "OverconstrainedError":
      return `No microphone was found. Connect one and press again. ${DROP}`;
    case "NotReadableError":
    case "AbortError":
      return `The microphone could not be opened: does another program use it? Press again. ${DROP}`;
    default:
      return `This browser cannot record here (${error.name}). ${DROP}`;
  }
}

/** One recording under way. */
export class Recording {
  /** Open the microphone and begin. Rejects with a DOMException; see `explain`. */
  static async begin() {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new DOMException("no mediaDevices", window.isSecureContext ? "NotSupportedError" : "InsecureContextError");
    }
    // as the microphone hears it: models are trained on recordings that nothing of this kind has gone over
    const wanted = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    const stream = await navigator.mediaDevices.getUserMedia({ audio: wanted });
    try {
      const recording = new Recording(stream);
      await recording.begun;
      return recording;
    } catch (error) {
      stream.getTracks().forEach((track) => track.stop());
      throw error;
    }
  }

  constructor(stream) {
    const format = FORMATS.find((name) => MediaRecorder.isTypeSupported(name));
    const options = { audioBitsPerSecond: 96_000, ...(format && { mimeType: format }) };
    const recorder = new MediaRecorder(stream, options);
    const parts = [];
    recorder.ondataavailable = ({ data }) => parts.push(data);
    this.begun = new Promise((resolve, reject) => {
      recorder.onstart = () => {
        this.since = performance.now();
        resolve();
      };
      recorder.onerror = ({ error }) => reject(error ?? new DOMException("failed", "NotReadableError"));
    });
    /** Resolves with the recording when it ends, also by itself: a microphone can be pulled out. */
    this.ended = new Promise((resolve) => {
      recorder.onstop = () => {
        this.#letGo();
        resolve(new Blob(parts, { type: recorder.mimeType || parts[0]?.type || "" }));
      };
    });
    Object.assign(this, { stream, recorder, since: null });
    this.#listen();
    recorder.start();
  }

  /** Seconds recorded so far. */
  get seconds() {
    return this.since === null ? 0 : (performance.now() - this.since) / 1000;
  }

  /** The loudness of the last few hundredths of a second, from 0 to 1, as it is drawn. */
  level() {
    if (!this.analyser) return 0;
    this.analyser.getFloatTimeDomainData(this.samples);
    const peak = this.samples.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    return Math.min(1, peak ** 0.6); // quiet voices are seen too
  }

  /** End it; the recording comes with `ended`. */
  end() {
    if (this.recorder.state !== "inactive") this.recorder.stop();
  }

  #listen() {
    this.context = new AudioContext();
    this.analyser = this.context.createAnalyser();
    this.analyser.fftSize = 2048;
    this.samples = new Float32Array(this.analyser.fftSize);
    this.context.createMediaStreamSource(this.stream).connect(this.analyser);
    this.context.resume().catch(() => {}); // the recording itself does not depend on it
  }

  #letGo() {
    this.stream.getTracks().forEach((track) => track.stop());
    this.context.close().catch(() => {});
  }
}
