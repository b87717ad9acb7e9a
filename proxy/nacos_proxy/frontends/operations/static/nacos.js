// The view of the names that Nacos lists.

import { el } from "/ui/dom.js";
import { heading, pager, serviceLink, table } from "/ui/parts.js";

/** `listed`: the answer of `/api/v1/services`; null: it was not asked yet. */
export function nacos(route, status, listed, detail) {
  const { namespace = "public", group = "DEFAULT_GROUP" } = route.query;
  const field = (name, label, usual, known) =>
    el(
      "div",
      {},
      el("label", { for: `nacos-${name}` }, label),
      el("input", { id: `nacos-${name}`, name, placeholder: usual, list: `known-${name}`, autocomplete: "off" }),
      el(
        "datalist",
        { id: `known-${name}` },
        Object.keys(known).map(value => el("option", { value })),
      ),
    );
  return [
    heading("In Nacos"),
    el(
      "p",
      { class: "muted" },
      "The services of a group that Nacos lists, also those that nobody has asked this proxy for.",
    ),
    el(
      "form",
      { class: "filters", "data-form": "nacos", "aria-label": "Namespace and group" },
      field("namespace", "Namespace, by its id", "public", status.summary.namespaces),
      field("group", "Group", "DEFAULT_GROUP", status.summary.groups),
      el("button", { class: "primary" }, "List"),
    ),
    detail && el("p", { class: "error", role: "alert" }, detail),
    listed?.stale &&
      el("p", { class: "box weak" }, "Nacos cannot be asked now. These are the services that this host knows."),
    listed &&
      (listed.services.length
        ? [
            table(
              `Services of ${group} in ${namespace}`,
              ["Service"],
              listed.services.map(name => ({
                key: name,
                cells: [el("a", { class: "name", href: serviceLink(namespace, group, name) }, name)],
              })),
            ),
            pager(route, (listed.page - 1) * listed.size, listed.services.length, listed.count),
          ]
        : el("p", { class: "empty" }, "Nacos lists no service there.")),
  ];
}
