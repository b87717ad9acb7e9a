// The view of the proxy itself.

import { el } from "/ui/dom.js";
import {
  badge,
  code,
  count,
  duration,
  grouped,
  heading,
  numbers,
  serviceLink,
  split,
  table,
  under,
  underBad,
  words,
} from "/ui/parts.js";

const SESSIONS = 50; // of gRPC that are shown
const COUNTS = {
  reads: "Reads, without repeated answers",
  fetches: "Fetches from the upstream",
  writes: "Writes",
  changes: "Changes",
  outage: "Writes during outages",
  pushes: "Pushes from the upstream",
  healed: "Instances registered again",
  local_beats: "Heartbeats answered here",
};

export function proxy(status) {
  const { upstream, push, disk, serviceFiles, grpc, dns, agentCheck } = status;
  return [
    heading("This proxy"),
    part(
      "Upstream",
      [
        [
          "State",
          [badge(upstream.state), ` for ${duration(upstream.forSeconds)}`, upstream.reason && `: ${upstream.reason}`],
        ],
        ["Kind", [upstream.kind, upstream.note && `: ${upstream.note}`]],
        upstream.login?.enabled && [
          "Login",
          [
            `${count(upstream.login.logins, "login")} `,
            upstream.login.error && el("span", { class: "bad" }, upstream.login.error),
          ],
        ],
        ["Push", [badge(push.state), " ", push.kind, " ", push.reason]],
      ],
      upstream.servers?.length > 0 &&
        table(
          "Servers",
          ["Server", "State", "Version", "Latency", "API", "Answers"],
          upstream.servers.map(server => [
            code(server.url),
            [badge(server.state), server.error && under(server.error)],
            server.version || "–",
            `${server.latencyMs.toFixed(1)} ms`,
            server.dialects.join(", "),
            numbers(server.outcomes),
          ]),
        ),
    ),
    part("Process", [
      ["Version", status.version],
      ["Host", status.host],
      ["Up for", duration(status.uptimeSeconds)],
      ["State on disk", [badge(disk.state), " ", disk.reason]],
      serviceFiles && [
        "Service files",
        [
          badge(serviceFiles.state),
          ` ${serviceFiles.files} in `,
          code(serviceFiles.directory),
          Object.entries(serviceFiles.errors).map(([file, error]) => underBad(`${file}: ${error}`)),
        ],
      ],
      [
        "Background tasks that failed",
        Object.entries(status.failing).map(([name, why]) => underBad(`${name}: ${why}`)),
        Object.keys(status.failing).length,
      ],
      [
        "Prepared answers",
        `${grouped(status.fastPath.answers)}, ${grouped(Math.ceil(status.fastPath.bytes / 1024))} KiB`,
      ],
      ["Last event", code(status.lastEventId)],
    ]),
    part(
      "Clients",
      [
        ["Event streams", streamsOf(status.subscribers.byClient)],
        grpc && [
          "gRPC",
          grpc.state === "off"
            ? [badge("off"), " ", grpc.reason]
            : [badge(grpc.state), ` on port ${grpc.port}, ${count(grpc.sessionsTotal, "session")}`],
        ],
        dns && [
          "DNS",
          dns.state === "off"
            ? [badge("off"), " ", dns.reason]
            : [badge(dns.state), ` on ${dns.addresses.join(", ")}; answers: ${numbers(dns.answers)}`],
        ],
        agentCheck && ["Agent checks", `on ${agentCheck.address}; answers: ${numbers(agentCheck.answers)}`],
        ["UDP pushes", numbers(status.udpPush)],
        [
          "Registered here",
          `${count(status.registrations, "instance")}, ${status.managed.length} checked by this proxy, ${status.published.instances} of gRPC connections`,
        ],
      ],
      grpc?.sessions?.length > 0 &&
        table(
          "gRPC sessions",
          ["Client", "SDK", "Application", "Namespace", "Subscriptions", "Published", "For"],
          grpc.sessions
            .slice(0, SESSIONS)
            .map(one => [
              one.client,
              one.sdk,
              one.app,
              one.namespaceId,
              one.subscriptions,
              one.published,
              duration(one.sinceSeconds),
            ]),
        ),
    ),
    listOf(
      "Out of traffic",
      status.outOfTraffic.shown,
      status.outOfTraffic.instances,
      ["Service", "Address", "State", "For, or left", "Reason"],
      row => [
        serviceNamed(row.service),
        code(row.address),
        badge(row.state),
        row.forSeconds != null ? duration(row.forSeconds) : `${duration(row.secondsLeft)} left`,
        row.reason,
      ],
    ),
    listOf(
      "Checked by this proxy",
      status.managed,
      status.managed.length,
      ["Service", "Address", "Check", "From"],
      row => [
        serviceNamed(row.service),
        code(row.address),
        [badge(row.passing ? "ok" : "failing"), row.error && under(row.error)],
        row.file ? `${row.file}, ${row.phase}` : "a client",
      ],
    ),
    listOf(
      "Heartbeats that Nacos refuses",
      status.published.failing,
      status.published.failing.length,
      ["Service", "Address", "Error"],
      row => [serviceNamed(row.service), code(row.address), row.error],
    ),
    listOf(
      "Webhooks",
      status.webhooks,
      status.webhooks.length,
      ["Webhook", "Host", "State", "Waiting", "Requests"],
      hook => [
        hook.webhook,
        code(hook.host),
        [badge(hook.state), hook.error && under(hook.error)],
        hook.pending,
        numbers(hook.outcomes),
      ],
    ),
    part(
      "Since the start",
      Object.entries(status.counts).map(([name, value]) => [
        COUNTS[name] ?? words(name),
        typeof value === "number" ? grouped(value) : numbers(value),
      ]),
    ),
  ];
}

/** The link to a service that `/status` names as `namespace/group@@name`. */
function serviceNamed(text) {
  const [namespace] = text.split("/", 1);
  const [group, name] = split(text.slice(namespace.length + 1));
  return el("a", { href: serviceLink(namespace, group, name) }, text);
}

function streamsOf(byClient) {
  const found = Object.entries(byClient).map(([client, number]) => `${grouped(number)} of ${client}`);
  return found.join(", ") || "none";
}

function part(title, facts, below) {
  const id = title.toLowerCase().replaceAll(" ", "-");
  const shown = facts.filter(fact => fact && fact[2] !== 0);
  return el(
    "section",
    { class: "part", "aria-labelledby": id, "data-key": id },
    el("h2", { id }, title),
    el(
      "dl",
      { class: "pairs" },
      shown.map(([name, value]) => el("div", { "data-key": name }, el("dt", {}, name), el("dd", {}, value))),
    ),
    below,
  );
}

function listOf(title, rows, total, head, cells) {
  if (!rows.length) return null;
  const id = title.toLowerCase().replaceAll(" ", "-");
  const more = total - rows.length;
  return el(
    "section",
    { class: "part", "aria-labelledby": id, "data-key": id },
    el("h2", { id }, `${title} (${grouped(total)})`),
    table(title, head, rows.map(cells)),
    more > 0 && el("p", { class: "muted" }, `and ${grouped(more)} more`),
  );
}
