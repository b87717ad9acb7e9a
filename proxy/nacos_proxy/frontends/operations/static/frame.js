// What is around the views: the tabs, the health of the proxy, the footer, and what stands in for a view.

import { el } from "/ui/dom.js";
import { box, code, duration, heading, link } from "/ui/parts.js";

export function tabs(route) {
  const tab = (name, label) =>
    el(
      "a",
      { href: link([name]), "aria-current": route.path[0] === name && (route.view === name ? "page" : "true") },
      label,
    );
  return [tab("services", "Services"), tab("nacos", "In Nacos"), tab("proxy", "This proxy")];
}

/** `lost`: why the proxy does not answer, '' if it does; `since`: for how many seconds. */
export function health(status, lost, since) {
  if (lost) {
    const old = status && ` What you see is ${duration(since)} old.`;
    return box("bad", lost, [el("p", {}, "The page goes on asking.", old)]);
  }
  const problems = status.warnings.filter(warning => warning.advice);
  const notes = status.warnings.filter(warning => !warning.advice);
  const text = { ready: "Ready", degraded: "Degraded", unready: "Not ready" }[status.status];
  const upstream = `upstream ${status.upstream.state} for ${duration(status.upstream.forSeconds)}`;
  return box(status.status === "unready" ? "bad" : problems.length ? "weak" : "good", `${text}: ${upstream}`, [
    problems.map(({ reason, advice }) => el("p", {}, el("strong", {}, reason), " ", withCode(advice))),
    notes.map(({ reason }) => el("p", { class: "muted" }, reason)),
  ]);
}

/** Text with `commands` between backticks, as code. */
function withCode(text) {
  return text.split("`").map((part, place) => (place % 2 ? code(part) : part));
}

/** `open`: whether a link may lead to what needs a token, because none is needed. */
export function footer(status, open) {
  return [
    `nacos-proxy ${status.version} on ${status.host}, up for ${duration(status.uptimeSeconds)} · `,
    el("a", { href: "/docs" }, "API"),
    open && [" · ", el("a", { href: "/status" }, "status"), " · ", el("a", { href: "/metrics" }, "metrics")],
  ];
}

export function problem(title, detail) {
  return [heading(title), box("bad", detail, [])];
}

export function tokenForm(detail) {
  return [
    heading("This proxy asks for a token"),
    el(
      "form",
      { class: "token", "data-form": "token" },
      el("label", { for: "token" }, "API token"),
      el("input", {
        id: "token",
        name: "token",
        type: "password",
        autocomplete: "off",
        required: true,
        "aria-describedby": "token-help",
      }),
      el("button", { class: "primary" }, "Use it"),
    ),
    el("p", { class: "error", role: "alert" }, detail),
    el(
      "p",
      { id: "token-help" },
      "Whoever runs this proxy has chosen the tokens: they are in ",
      code("tokens_file"),
      " or ",
      code("NACOS_PROXY_TOKENS"),
      ". With ",
      code("read"),
      " you see everything here, with ",
      code("write"),
      " you may change instances. With ",
      code("auth = client"),
      ", use a token that Nacos gave you. This tab alone keeps it, until you close it.",
    ),
  ];
}
