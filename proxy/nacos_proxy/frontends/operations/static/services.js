// The view of all services: totals, filters, a table.

import { el } from "/ui/dom.js";
import {
  badge,
  command,
  count,
  duration,
  grouped,
  heading,
  link,
  pager,
  serviceLink,
  split,
  table,
  under,
} from "/ui/parts.js";

const CONDITIONS = {
  fresh: "Fresh",
  stale: "Stale",
  expired: "Expired",
  missing: "Never read",
  unhealthy: "Some unhealthy",
  empty: "No instances",
  failing: "Last read failed",
};
const COLUMNS = [
  { sort: "name", label: "Service" },
  { sort: "namespace", label: "Namespace", wide: true },
  { sort: "state", label: "State" },
  { sort: "age", label: "Age", number: true, wide: true },
  { sort: "healthy", label: "Healthy", number: true },
  { sort: "instances", label: "Instances", number: true, wide: true },
  { sort: "subscribers", label: "Subscribers", number: true, wide: true },
];

/** `rate`: reads a second and the share of hits, null while it is unknown. */
export function services(route, status, rate) {
  const { summary } = status;
  return [
    heading("Services"),
    tiles(status, rate),
    filters(route, summary),
    summary.services === 0 ? nothingYet() : serviceTable(route, status),
    status.servicesFound > 0 && pager(route, status.offset, status.services.length, status.servicesFound),
  ];
}

function tiles({ summary, subscribers, grpc }, rate) {
  const states = Object.entries(summary.states).filter(([, number]) => number);
  const tile = (label, value, below, more) =>
    el(
      "div",
      { class: "tile" },
      el("dt", {}, label),
      el("dd", {}, el("span", { class: "value" }, value), more, el("span", { class: "muted" }, below)),
    );
  const sick = summary.instances - summary.healthy;
  const sessions = grpc?.sessionsTotal ? `, ${count(grpc.sessionsTotal, "gRPC session")}` : "";
  return el(
    "dl",
    { class: "tiles" },
    tile(
      "Services",
      grouped(summary.services),
      states.map(([name, number]) => `${grouped(number)} ${name}`).join(", ") || "none yet",
      bar(states, summary.services),
    ),
    tile(
      "Healthy instances",
      `${grouped(summary.healthy)} of ${grouped(summary.instances)}`,
      sick ? `${grouped(sick)} unhealthy` : summary.instances ? "all of them" : "none yet",
      bar(
        [
          ["healthy", summary.healthy],
          ["unhealthy", sick],
        ],
        summary.instances,
      ),
    ),
    tile(
      "Subscribers",
      grouped(subscribers.streams),
      `${count(summary.watched, "service")} kept up to date${sessions}`,
    ),
    tile(
      "Reads a second",
      rate ? rate.reads.toFixed(rate.reads && rate.reads < 10 ? 1 : 0) : "–",
      rate?.hits != null ? `${Math.round(100 * rate.hits)} % from memory` : `${grouped(summary.reads)} in all`,
    ),
    tile("Oldest answer", duration(summary.oldestAgeSeconds), "of the services kept up to date"),
  );
}

/** Shares of a whole as a bar; the text beside it says the same. */
function bar(parts, total) {
  let x = 0;
  const pieces = parts.map(([name, number]) => {
    const width = total ? (100 * number) / total : 0;
    x += width;
    return el("rect", { class: `share ${name}`, x: `${x - width}%`, width: `${width}%`, height: 4 });
  });
  return el("svg", { class: "bar", "aria-hidden": "true", height: 4 }, pieces);
}

function filters(route, summary) {
  const choice = (name, label, all, values) =>
    el(
      "div",
      { "data-key": name },
      el("label", { for: `filter-${name}` }, label),
      el(
        "select",
        { id: `filter-${name}`, name },
        el("option", { value: "" }, all),
        values.map(([value, text]) => el("option", { value, "data-key": `option ${value}` }, text)),
      ),
    );
  const counted = byName => Object.entries(byName).map(([name, number]) => [name, `${name} (${grouped(number)})`]);
  return el(
    "form",
    { class: "filters", role: "search", "aria-label": "Services", "data-form": "filters" },
    el(
      "div",
      { "data-key": "search" },
      el("label", { for: "filter-search" }, "Search"),
      el("input", {
        id: "filter-search",
        name: "search",
        type: "search",
        placeholder: "name or group",
        autocomplete: "off",
      }),
    ),
    choice("condition", "State", "All states", Object.entries(CONDITIONS)),
    choice("namespace", "Namespace", "All namespaces", counted(summary.namespaces)),
    choice("group", "Group", "All groups", counted(summary.groups)),
  );
}

function nothingYet() {
  return el(
    "div",
    { class: "empty" },
    el("p", {}, "Nobody has read or registered a service through this proxy yet."),
    el("p", {}, "See what there is ", el("a", { href: link(["nacos"]) }, "in Nacos"), ", or register an instance:"),
    command(
      `curl -X POST '${location.origin}/nacos/v1/ns/instance?serviceName=orders&ip=10.0.0.1&port=8080&ephemeral=false'`,
    ),
  );
}

function serviceTable(route, status) {
  if (!status.services.length) {
    return el(
      "p",
      { class: "empty" },
      "No service is like that. ",
      el("a", { href: link(["services"]) }, "Show all services"),
    );
  }
  const sort = route.query.sort ?? "name";
  const heads = COLUMNS.map(column => {
    const direction = { [column.sort]: "ascending", [`-${column.sort}`]: "descending" }[sort];
    const first = column.number ? `-${column.sort}` : column.sort;
    const next = direction ? (sort.startsWith("-") ? column.sort : `-${column.sort}`) : first;
    const label = el("a", { href: link(["services"], { ...route.query, sort: next, page: "" }) }, column.label);
    return el("th", { scope: "col", "aria-sort": direction, class: shape(column) }, label);
  });
  const rows = status.services.map(row => {
    const [group, name] = split(row.service);
    const cells = [
      [
        el("a", { class: "name", href: serviceLink(row.namespaceId, group, name) }, name),
        under(group, el("span", { class: "narrow" }, ` in ${row.namespaceId}`)),
      ],
      row.namespaceId,
      [badge(row.state), row.error && under(row.error)],
      duration(row.ageSeconds),
      el(
        "span",
        { class: row.healthy < row.instances && "bad" },
        grouped(row.healthy),
        el("span", { class: "narrow" }, ` of ${grouped(row.instances)}`),
      ),
      grouped(row.instances),
      grouped(row.subscribers),
    ];
    return {
      key: `${row.namespaceId}/${row.service}`,
      cells: cells.map((cell, place) => el("td", { class: shape(COLUMNS[place]) }, cell)),
    };
  });
  return table("Services", heads, rows, "services");
}

function shape(column) {
  return [column.number && "number", column.wide && "wide"].filter(Boolean).join(" ") || null;
}
