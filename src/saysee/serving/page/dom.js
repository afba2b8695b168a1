// Small helpers. Text from outside reaches the page through `textContent` only: file names are hostile.

/** The element with this id. */
export const $ = (id) => document.getElementById(id);

/**
 * A new element.
 * @param {string} tag
 * @param {object} properties set on the element; `data` sets data attributes, `aria` those of ARIA.
 * @param {...(Node|string)} children a string becomes a text node.
 */
export function make(tag, { data = {}, aria = {}, ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  Object.assign(element.dataset, data);
  for (const [name, value] of Object.entries(aria)) element.setAttribute(`aria-${name}`, value);
  element.append(...children);
  return element;
}

/** Show or hide elements. */
export function show(visible, ...elements) {
  for (const element of elements) element.hidden = !visible;
}

/** Have a screen reader say a line; emptied first, so that the same line twice is said twice. */
export function announce(text, region = $("status")) {
  region.textContent = "";
  setTimeout(() => (region.textContent = text), 60);
}

/**
 * Say what went wrong, above everything else.
 * @param {string} text
 * @param {?function} again what "Try again" does, if that can help.
 */
export function complain(text, again = null) {
  $("notice-text").textContent = text;
  $("notice-again").onclick = again && (() => { hush(); again(); });
  show(Boolean(again), $("notice-again"));
  show(true, $("notice"));
}

/** Say that a busy server is asked again, or take that back: `waiting` of the API's requests. */
export function busy(seconds) {
  if (seconds) complain(`The server is busy. It is asked again in ${seconds} s.`);
  else hush();
}

/** Take back what was complained of. */
export function hush() {
  show(false, $("notice"));
  $("notice-text").textContent = "";
}

/** Seconds as people read them: 0:07. */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

/** How many of what: "1 picture", "12 pictures". */
export const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

/** A score with a true minus sign, which is as wide as a plus. */
export function signed(value, digits, plus = false) {
  const text = Math.abs(value).toFixed(digits);
  return `${value < 0 ? "\u2212" : plus ? "+" : ""}${text}`;
}

const ENLARGED = 2.5; // times, at most: more shows no more

/** Wait for a picture, and give the box around it its shape: then what lies over the box lies over the picture. */
export async function fit(image, address) {
  image.src = address;
  await image.decode();
  const { naturalWidth: width, naturalHeight: height } = image;
  image.parentElement.style.setProperty("--ratio", width / height);
  image.parentElement.style.setProperty("--widest", `${width * ENLARGED}px`);
}

/** Whether the person asked for less motion. */
export const prefersStillness = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
