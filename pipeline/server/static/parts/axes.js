// Round numbers along an axis.

/** Round marks between two numbers, about so many. */
export function linearTicks(low, high, about = 5) {
  const span = high - low;
  if (!(span > 0)) return [low];
  const rough = span / about;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((one) => one * power >= rough) * power;
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step / 1e6; at += step)
    found.push(Math.abs(at) < step / 1e6 ? 0 : at);
  return found;
}

/** Powers of ten between two positive numbers, with 2 and 5 where there are few. */
export function logTicks(low, high, most = 7) {
  const first = Math.floor(Math.log10(low) + 1e-9);
  const last = Math.ceil(Math.log10(high) - 1e-9);
  const stride = Math.max(1, Math.ceil((last - first) / most));
  const found = [];
  for (let exponent = first; exponent <= last; exponent += stride) {
    for (const factor of last - first <= 2 ? [1, 2, 5] : [1]) {
      const at = factor * 10 ** exponent;
      if (at >= low * 0.999 && at <= high * 1.001) found.push(at);
    }
  }
  return found;
}

/** A mark as text; `powers` writes every one as a power of ten. */
export function tickText(number, powers = false) {
  if (number === 0) return "0";
  const large = Math.abs(number);
  if (powers || large >= 1e5 || large < 1e-3) {
    const exponent = Math.round(Math.log10(large));
    const exact = Math.abs(large / 10 ** exponent - 1) < 1e-9;
    return (exact ? `${number < 0 ? "-" : ""}1e${exponent}` : number.toExponential(1)).replaceAll("-", "\u2212");
  }
  return Number(number.toPrecision(6)).toLocaleString("en-US", { maximumFractionDigits: 6 }).replace("-", "\u2212");
}
