// Quantities as a person reads them; the same words as the command line's.

const SIZES = ["bytes", "kB", "MB", "GB", "TB", "PB"];
const THIN = "\u202f";

/** 1433 -> 1,433 */
export function count(number) {
  return Number(number).toLocaleString("en-US", { maximumFractionDigits: 0 });
}

/** "1 sample", "3 samples" */
export function counted(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}

/** Bytes in powers of a thousand. */
export function size(bytes) {
  let step = 0;
  let left = Number(bytes);
  if (left < 1000) return `${left.toFixed(0)} bytes`;
  while (left >= 999.95 && step + 1 < SIZES.length) {
    left /= 1000;
    step += 1;
  }
  return `${left.toLocaleString("en-US", { minimumFractionDigits: 1, maximumFractionDigits: 1 })} ${SIZES[step]}`;
}

/** Seconds: tenths up to a minute, then two units. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(Number(seconds))) return "unknown";
  if (seconds < 0.0995) return seconds > 0 ? `${(1000 * seconds).toFixed(0)} ms` : "0 s";
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  if (seconds < 3600) return two(Math.floor(seconds / 60), "min", Math.floor(seconds % 60), "s");
  const minutes = Math.floor(seconds / 60);
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? two(hours, "h", minutes % 60, "min") : two(Math.floor(hours / 24), "d", hours % 24, "h");
}

/** A number with so many significant digits; powers of ten where it is very small or large. */
export function value(number, digits = 4) {
  if (number === null || number === undefined || Number.isNaN(number)) return "none";
  const one = Number(number);
  if (one === 0) return "0";
  const large = Math.abs(one);
  if (!Number.isFinite(one)) return one > 0 ? "infinite" : "-infinite";
  if (large >= 1e6 || large < 1e-3) return power(one, digits);
  const places = Math.max(0, digits - 1 - Math.floor(Math.log10(large)));
  return minus(one.toLocaleString("en-US", { minimumFractionDigits: places, maximumFractionDigits: places }));
}

/** 0.0123 -> 1.23 % */
export function percent(share, places = 1) {
  return share === null || share === undefined ? "none" : minus(`${(100 * share).toFixed(places)}${THIN}%`);
}

/** Seconds since 1970 as local date and time. */
export function moment(seconds) {
  if (!seconds) return "unknown";
  const at = new Date(1000 * seconds);
  const part = (number) => String(number).padStart(2, "0");
  const day = `${at.getFullYear()}-${part(at.getMonth() + 1)}-${part(at.getDate())}`;
  return `${day} ${part(at.getHours())}:${part(at.getMinutes())}`;
}

/** Long texts with their middle left out. */
export function short(text, most = 28) {
  const all = String(text);
  if (all.length <= most) return all;
  const head = Math.ceil((most - 1) / 2);
  return `${all.slice(0, head)}…${all.slice(all.length - (most - 1 - head))}`;
}

function power(one, digits) {
  const [mantissa, exponent] = one.toExponential(digits - 1).split("e");
  return `${minus(mantissa)}e${minus(exponent.replace("+", ""))}`;
}

function minus(text) {
  return text.replace("-", "\u2212");
}

function two(large, unit, small, smaller) {
  return small ? `${count(large)} ${unit} ${small} ${smaller}` : `${count(large)} ${unit}`;
}
