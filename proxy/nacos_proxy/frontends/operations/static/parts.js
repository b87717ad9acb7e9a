// What several views are made of.

import { el } from "/ui/dom.js";

export const PAGE_SIZE = 50; // services, and names of the upstream, on a page
const GOOD = new Set(["ready", "up", "ok", "fresh", "healthy", "delivered"]);
const BAD = new Set(["unready", "down", "expired", "failing", "lost", "unhealthy", "ended"]);
const WEAK = new Set([
  "degraded",
  "stale",
  "late",
  "draining",
  "deregistering",
  "maintenance",
  "disabled",
  "unavailable",
]);

/** `#/parts?query`, without empty values. */
export function link(parts, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== "" && value != null);
  const path = parts.map(encodeURIComponent).join("/");
  return `#/${path}${given.length ? `?${new URLSearchParams(given)}` : ""}`;
}

export function serviceLink(namespace, group, name) {
  return link(["services", namespace, group, name]);
}

/** Seconds in their two largest units: `3 d 4 h`, `59 s`, `0.4 s`. */
export function duration(seconds) {
  if (seconds == null) return "–";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  let left = Math.floor(seconds);
  const parts = [];
  for (const [unit, size] of [
    ["d", 86_400],
    ["h", 3_600],
    ["min", 60],
    ["s", 1],
  ]) {
    const number = Math.floor(left / size);
    left -= number * size;
    if (number) parts.push(`${number} ${unit}`);
    else if (parts.length) break;
  }
  return parts.slice(0, 2).join(" ");
}

export function count(number, one, many = `${one}s`) {
  return `${grouped(number)} ${number === 1 ? one : many}`;
}

export function grouped(number) {
  return number.toLocaleString("en-US");
}

/** A word in its colour, which its shape says, too. */
export function badge(word, text = word) {
  const kind = GOOD.has(word) ? "good" : BAD.has(word) ? "bad" : WEAK.has(word) ? "weak" : "plain";
  return el("span", { class: `badge ${kind}` }, text);
}

export function code(text) {
  return el("code", {}, text);
}

export function heading(text) {
  return el("h1", { tabindex: -1 }, text); // the focus goes there with a new view
}

/** A second line in a cell. */
export function under(...content) {
  return el("span", { class: "muted under" }, content);
}

export function underBad(...content) {
  return el("span", { class: "bad under" }, content);
}

export function button(action, label, more = {}) {
  return el("button", { type: "button", "data-action": action, ...more }, label);
}

export function numbers(byName) {
  const found = Object.entries(byName).map(([name, number]) => `${grouped(number)} ${words(name)}`);
  return found.join(", ") || "none";
}

/** `givenUp` and `given_up` as words. */
export function words(name) {
  return name.replaceAll("_", " ").replace(/(?<=[a-z])[A-Z]/g, letter => ` ${letter.toLowerCase()}`);
}

/** A table that scrolls by itself where it is too wide. Each row: `{key, cells}`, or cells alone. */
export function table(caption, head, rows, name = "") {
  const heads = head.map(cell => (cell instanceof Node ? cell : el("th", { scope: "col" }, cell)));
  const lines = rows.map(row => {
    const { key, cells } = Array.isArray(row) ? { key: null, cells: row } : row;
    return el(
      "tr",
      { "data-key": key },
      cells.map(cell => (cell?.nodeName === "TD" ? cell : el("td", {}, cell))),
    );
  });
  const made = el(
    "table",
    { class: name },
    el("caption", { class: "unseen" }, caption),
    el("thead", {}, el("tr", {}, heads)),
    el("tbody", {}, lines),
  );
  const focusable = made.querySelector("a, button"); // else the keyboard needs another way to scroll it
  return el(
    "div",
    focusable ? { class: "scroll" } : { class: "scroll", role: "region", "aria-label": caption, tabindex: 0 },
    made,
  );
}

export function pager(route, offset, shown, total) {
  const page = Math.floor(offset / PAGE_SIZE);
  const turn = (to, label) =>
    to < 0 || to * PAGE_SIZE >= total
      ? el("span", { class: "muted" }, label)
      : el("a", { href: link(route.path, { ...route.query, page: to || "" }) }, label);
  const text = `${grouped(offset + 1)} to ${grouped(offset + shown)} of ${grouped(total)}`;
  return el(
    "nav",
    { class: "pager", "aria-label": "Pages" },
    turn(page - 1, "Previous"),
    el("span", {}, text),
    turn(page + 1, "Next"),
  );
}

export function pageOf(query) {
  return Math.max(0, Math.floor(Number(query.page)) || 0);
}

/** Group and name of `group@@name`. */
export function split(text) {
  const at = text.indexOf("@@");
  return [text.slice(0, at), text.slice(at + 2)];
}

export function addressOf(host) {
  return host.ip.includes(":") ? `[${host.ip}]:${host.port}` : `${host.ip}:${host.port}`;
}

export function command(line) {
  return el(
    "div",
    { class: "command" },
    el("code", { tabindex: 0 }, line),
    button("copy", "Copy", { "aria-label": `Copy ${line}` }),
  );
}

export function box(kind, title, lines) {
  return el("div", { class: `box ${kind}` }, el("p", { class: "head" }, title), lines);
}
