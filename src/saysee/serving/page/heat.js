// The heat map: weights of a small grid, drawn over the whole picture.

const SIZE = 96; // pixels a side of what CSS then stretches over the picture

// from a veil where nothing was taken in, over the colour of the voice, to almost clear: red, green, blue, opacity
const RAMP = [
  [0, [20, 18, 24, 0.66]],
  [0.35, [96, 34, 40, 0.6]],
  [0.65, [214, 84, 38, 0.52]],
  [1, [255, 208, 92, 0.42]],
];

/** Which frame of a heat map belongs to a moment in seconds, or null outside of what was heard. */
export function frameAt(heat, seconds) {
  const frame = Math.floor((seconds - heat.from) / heat.step);
  return frame >= 0 && frame < heat.frames ? frame : null;
}

/** One frame, (rows x columns), from 0 to 1: 1 is the largest weight of the whole recording. */
export function frameOf(heat, frame) {
  const size = heat.rows * heat.columns;
  return Float32Array.from(heat.weights.subarray(frame * size, (frame + 1) * size), (weight) => weight / 255);
}

/** The mean of all frames, (rows x columns), over its own largest value. */
export function meanOf(heat) {
  const size = heat.rows * heat.columns;
  const mean = new Float32Array(size);
  heat.weights.forEach((weight, index) => (mean[index % size] += weight));
  const most = Math.max(...mean, 1e-6);
  return mean.map((weight) => weight / most);
}

/** Whether no weight is twice the mean (ours): what is drawn then makes much of little. */
export function isFlat(heat) {
  const sum = heat.weights.reduce((total, weight) => total + weight, 0);
  return heat.weights.reduce((most, weight) => Math.max(most, weight), 0) * heat.weights.length < 2 * sum;
}

/**
 * Draw a grid over a picture. The model saw the picture stretched to a square and the grid divides that square, so the
 * grid stretched back over the whole picture, whatever its shape, lies where it belongs.
 * @param {HTMLCanvasElement} canvas as large as the picture, by CSS.
 * @param {Float32Array} grid (rows x columns) from 0 to 1.
 */
export function drawHeat(canvas, grid, rows, columns) {
  canvas.width = canvas.height = SIZE;
  const image = new ImageData(SIZE, SIZE);
  const [across, down] = [between(columns), between(rows)];
  for (let y = 0; y < SIZE; y += 1) {
    for (let x = 0; x < SIZE; x += 1) {
      const [left, right, toRight] = across[x];
      const [top, bottom, toBottom] = down[y];
      const above = mix(grid[top * columns + left], grid[top * columns + right], toRight);
      const below = mix(grid[bottom * columns + left], grid[bottom * columns + right], toRight);
      image.data.set(colour(mix(above, below, toBottom)), (y * SIZE + x) * 4);
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** For every pixel the two cells between whose centres it lies, and how much of the second it gets. */
function between(cells) {
  return Array.from({ length: SIZE }, (_, pixel) => {
    const place = Math.min(cells - 1, Math.max(0, ((pixel + 0.5) / SIZE) * cells - 0.5));
    const first = Math.floor(place);
    const part = place - first;
    return [first, Math.min(cells - 1, first + 1), part * part * (3 - 2 * part)]; // smooth: no edges between cells
  });
}

function colour(value) {
  const upper = Math.max(1, RAMP.findIndex(([at]) => value <= at));
  const [[low, from], [high, to]] = [RAMP[upper - 1], RAMP[upper]];
  const part = Math.min(1, Math.max(0, (value - low) / (high - low)));
  const [red, green, blue, opacity] = from.map((channel, index) => mix(channel, to[index], part));
  return [red, green, blue, opacity * 255];
}

const mix = (from, to, part) => from + (to - from) * part;
