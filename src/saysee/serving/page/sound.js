// A recording in memory: its shape, and playing it back.

const RATE = 48_000; // Hz, of what is played

/** A recording that this browser can decode. */
class Sound {
  constructor(samples) {
    this.samples = samples;
    this.duration = samples.length / RATE;
    // a WAV file, since recorders write webm without a duration, in which players cannot seek
    this.address = URL.createObjectURL(wav(samples));
    this.audio = new Audio(this.address);
  }

  /** The largest absolute sample of each of `parts` equal parts, over the largest of all: from 0 to 1. */
  peaks(parts) {
    const peaks = new Float32Array(parts);
    for (let index = 0; index < this.samples.length; index += 1) {
      const part = Math.min(parts - 1, Math.floor((index * parts) / this.samples.length));
      peaks[part] = Math.max(peaks[part], Math.abs(this.samples[index]));
    }
    const most = Math.max(...peaks, 1e-6);
    return peaks.map((peak) => peak / most);
  }

  release() {
    this.audio.pause();
    URL.revokeObjectURL(this.address);
  }
}

/** Decode a recording, or give null when this browser cannot: it is then neither drawn nor played, but may be asked. */
export async function decode(blob) {
  try {
    const context = new OfflineAudioContext(1, 1, RATE); // decodes without a sound card
    const buffer = await context.decodeAudioData(await blob.arrayBuffer());
    const mono = new Float32Array(buffer.length);
    for (let channel = 0; channel < buffer.numberOfChannels; channel += 1) {
      buffer.getChannelData(channel).forEach((value, index) => (mono[index] += value / buffer.numberOfChannels));
    }
    return mono.length ? new Sound(mono) : null;
  } catch {
    return null;
  }
}

/** A button that plays and pauses a sound. */
export class Player {
  /**
   * @param {HTMLButtonElement} button with a `span` that names it.
   * @param {function(number)} moved called with the moment in seconds, at every frame while it plays and when it ends.
   */
  constructor(button, moved) {
    Object.assign(this, { button, moved, sound: null, label: button.querySelector("span") });
    this.name = this.label.textContent;
    button.addEventListener("click", () => this.toggle());
  }

  get playing() {
    return Boolean(this.sound) && !this.sound.audio.paused;
  }

  /** Take another sound, or none. */
  load(sound) {
    this.pause();
    this.sound = sound;
    this.button.hidden = !sound;
  }

  toggle() {
    if (this.playing) this.pause();
    else this.play();
  }

  /** Play from where it stands; from the beginning when it stands at the end. */
  async play() {
    const { sound } = this;
    if (!sound) return;
    if (sound.audio.currentTime >= sound.duration - 0.02) sound.audio.currentTime = 0;
    sound.audio.onended = sound.audio.onpause = () => this.#mark();
    try {
      await sound.audio.play();
    } catch {
      return; // paused before it began, or the browser wants a press first
    }
    this.#mark();
    this.#follow(sound);
  }

  pause() {
    this.sound?.audio.pause();
    this.#mark();
  }

  /** Go to a moment. */
  seek(seconds) {
    if (this.sound) this.sound.audio.currentTime = Math.min(seconds, this.sound.duration);
  }

  #mark() {
    this.button.classList.toggle("at-it", this.playing);
    this.label.textContent = this.playing ? "Pause" : this.name;
  }

  #follow(sound) {
    if (sound !== this.sound) return;
    this.moved(sound.audio.currentTime);
    if (this.playing) requestAnimationFrame(() => this.#follow(sound));
  }
}

/** Samples from -1 to 1 as a 16-bit WAV file. */
function wav(samples) {
  const view = new DataView(new ArrayBuffer(44 + samples.length * 2));
  const text = (at, letters) => [...letters].forEach((one, index) => view.setUint8(at + index, one.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + samples.length * 2, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // one channel
  view.setUint32(24, RATE, true);
  view.setUint32(28, RATE * 2, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, samples.length * 2, true);
  samples.forEach((value, index) => view.setInt16(44 + index * 2, Math.max(-1, Math.min(1, value)) * 32_767, true));
  return new Blob([view], { type: "audio/wav" });
}
