// The view of one service: its instances, how to ask for it, its changes.

import { el } from "/ui/dom.js";
import {
  addressOf,
  badge,
  button,
  code,
  command,
  count,
  duration,
  heading,
  link,
  table,
  under,
  underBad,
} from "/ui/parts.js";

const ORIGINS = {
  elsewhere: "elsewhere",
  client: "a client of this proxy",
  connection: "an SDK of this proxy, by gRPC",
  check: "this proxy, which checks it",
  file: "a service file of this proxy",
};

/** `known`: the answer of `/status/{service}`; `changes`: the newest first; `actions`: those that a host allows. */
export function service(route, status, known, changes, streamProblem, actions) {
  const [, namespace, group, name] = route.path;
  const hosts = known.hosts.toSorted((one, other) =>
    addressOf(one).localeCompare(addressOf(other), "en", { numeric: true }),
  );
  return [
    el(
      "nav",
      { class: "crumbs", "aria-label": "Path" },
      el("a", { href: link(["services"]) }, "Services"),
      " / ",
      el("a", { href: link(["services"], { namespace }) }, namespace),
      " / ",
      el("a", { href: link(["services"], { namespace, group }) }, group),
    ),
    heading(name),
    el("p", { class: "facts" }, serviceFacts(known)),
    el(
      "section",
      { "aria-labelledby": "instances" },
      el("h2", { id: "instances" }, `Instances (${hosts.length})`),
      hosts.length
        ? instanceTable(hosts, checksOf(known, status), actions)
        : el("p", { class: "empty" }, emptiness(known)),
    ),
    el(
      "section",
      { "aria-labelledby": "asking" },
      el("h2", { id: "asking" }, "How to ask for it"),
      waysToAsk(namespace, group, name, status).map(([label, line]) =>
        el("div", { class: "way", "data-key": label }, el("h3", {}, label), command(line)),
      ),
    ),
    el(
      "section",
      { "aria-labelledby": "changes" },
      el("h2", { id: "changes" }, "Changes, as they come"),
      streamProblem && el("p", { class: "error" }, streamProblem),
      el(
        "ol",
        { class: "changes" },
        changes.map(change =>
          el(
            "li",
            { "data-key": `change ${change.number}` },
            el("time", {}, change.time),
            " ",
            change.lines.map(line => el("span", { class: "line" }, line)),
          ),
        ),
      ),
    ),
  ];
}

function serviceFacts(known) {
  const facts = [
    [badge(known.state), known.ageSeconds != null && ` ${duration(known.ageSeconds)} old`],
    `${known.healthy} of ${known.instances} healthy`,
    `${count(known.subscribers, "subscriber")}, this page included`,
    known.pendingWrites > 0 && `${count(known.pendingWrites, "write")} that Nacos does not list yet`,
    known.fromDisk && "known from before the restart",
    known.error && el("span", { class: "bad" }, known.error),
  ];
  return facts.filter(Boolean).map(fact => el("span", {}, fact));
}

function emptiness(known) {
  if (known.error) return `It could not be read: ${known.error}`;
  return known.state === "missing"
    ? "It is being read…"
    : "No instance is registered. A service without instances and an unknown one look the same.";
}

/** What the proxy's own checks of a service's instances say, by address. */
function checksOf(known, status) {
  const ours = status.managed.filter(one => one.service === `${known.namespaceId}/${known.service}`);
  return new Map(ours.map(one => [one.address, one]));
}

function instanceTable(hosts, checks, actions) {
  const offered = hosts.some(host => actions(host).length);
  const head = [
    "Address",
    "Health",
    el("th", { scope: "col", class: "number" }, "Weight"),
    "Metadata",
    "Came from",
    offered && "Change",
  ];
  const rows = hosts.map(host => {
    const address = addressOf(host);
    const cell = (label, attributes, ...content) =>
      el("td", { "data-label": label, ...attributes }, el("div", {}, content));
    return {
      key: `${address} ${host.clusterName}`,
      cells: [
        cell(
          "Address",
          {},
          code(address),
          under(`${host.clusterName}, ${host.ephemeral ? "ephemeral" : "persistent"}`),
        ),
        cell("Health", {}, hostState(host), underBad(checks.get(address)?.error)),
        cell("Weight", { class: "number" }, host.weight),
        cell("Metadata", {}, chips(host.metadata)),
        cell("Came from", {}, ORIGINS[host.origin]),
        offered &&
          cell(
            "Change",
            { class: "buttons" },
            actions(host).map(([action, label]) =>
              button("change", label, {
                "data-key": action,
                "data-change": action,
                "data-address": address,
                "data-cluster": host.clusterName,
                "aria-label": `${label} ${address}`,
              }),
            ),
          ),
      ].filter(Boolean),
    };
  });
  return table("Instances", head.filter(Boolean), rows, "instances");
}

function hostState(host) {
  const { drain, maintenance } = host;
  return [
    badge(host.healthy ? "healthy" : "unhealthy"),
    !host.enabled && !drain && !maintenance && badge("disabled"),
    drain && badge(drain.state),
    drain?.state === "draining" && under(`${duration(drain.secondsLeft)} left`),
    drain?.error && underBad(drain.error),
    maintenance && [badge("maintenance"), under(maintenance.reason)],
  ];
}

function chips(metadata) {
  const pairs = Object.entries(metadata);
  return el(
    "ul",
    { class: "chips" },
    pairs.map(([name, value]) => el("li", {}, el("span", { class: "muted" }, `${name}=`), String(value))),
  );
}

/** How to ask for a service, with its namespace and group only where they are not the defaults. */
function waysToAsk(namespace, group, name, status) {
  const elsewhere = [
    ["namespace", namespace, "public"],
    ["group", group, "DEFAULT_GROUP"],
  ].filter(([, value, usual]) => value !== usual);
  const url = (path, query) => {
    const given = new URLSearchParams([...query, ...elsewhere.map(([key, value]) => [key, value])]);
    return `${location.origin}${path}${[...given].length ? `?${given}` : ""}`.replaceAll("'", "%27");
  };
  const token = status.tokenNeeded ? ` -H "Authorization: Bearer $TOKEN"` : "";
  const quoted = JSON.stringify(name);
  const python = elsewhere
    .map(([key, value]) => `, ${key === "group" ? "group_name" : "namespace_id"}=${JSON.stringify(value)}`)
    .join("");
  const ways = [
    [
      "One instance, as a load balancer chooses it",
      `curl${token} '${url(`/api/v1/services/${encodeURIComponent(name)}/pick`, [["format", "text"]])}'`,
    ],
    ["All instances, and every change", `curl -N${token} '${url("/api/v1/events", [["service", name]])}'`],
    ["Python", `NacosClient("${location.host}").list_naming_instance(${quoted}${python})`],
    ["Java, with serverAddr=" + location.host, `naming.selectInstances(${quoted}, ${JSON.stringify(group)}, true)`],
  ];
  const { dns } = status;
  if (dns?.state === "ok" && dns.zones.length && /^[\w.:-]+$/.test(name) && /^[\w-]+$/.test(group + namespace)) {
    const [address, port] = dns.addresses[0].split(/:(?=\d+$)/);
    const asked = `${name}.${group.replaceAll("_", "-")}.${namespace}.${dns.zones[0]}`;
    ways.push(["DNS", `dig @${address.replace(/[[\]]/g, "")} -p ${port} ${asked}`]);
  }
  return ways;
}

/** What an event of the stream says, as lines; `before`: the hosts of the event before it, by address. */
export function changeLines(event, before) {
  const { data } = event;
  if (event.event === "upstream")
    return [data.state === "up" ? "Nacos is back." : `Nacos is ${data.state}: ${data.reason}`];
  if (event.event === "snapshot") return [`${count(data.hosts.length, "instance")} now`];
  const named = host => `${addressOf(host)} (${host.clusterName})`;
  return [
    ...data.added.map(host => `+ ${named(host)}, weight ${host.weight}`),
    ...data.removed.map(host => `- ${named(host)}`),
    ...data.modified.map(host => `${named(host)}: ${differences(before.get(named(host)), host)}`),
    `by ${{ write: "a write through this proxy", push: "a push of Nacos", poll: "a poll" }[data.source] ?? data.source}`,
  ];
}

export function hostsByName(hosts) {
  return new Map(hosts.map(host => [`${addressOf(host)} (${host.clusterName})`, host]));
}

function differences(before, after) {
  const told = ["weight", "healthy", "enabled", "metadata"].filter(
    field => JSON.stringify(before?.[field]) !== JSON.stringify(after[field]),
  );
  const text = value => (typeof value === "object" ? JSON.stringify(value) : String(value));
  return (
    told
      .map(field =>
        before ? `${field} ${text(before[field])} → ${text(after[field])}` : `${field} ${text(after[field])}`,
      )
      .join(", ") || "changed"
  );
}
