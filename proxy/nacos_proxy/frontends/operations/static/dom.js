// Makes elements from descriptions, and changes those on the page to look like new ones.
// Text of others only ever becomes a text node or the value of an attribute, never HTML.

const SVG = "http://www.w3.org/2000/svg";
const SVG_NAMES = new Set(["svg", "rect"]);

/** An element. An attribute that is false, null or undefined is left out; so is such a child. */
export function el(name, attributes = {}, ...children) {
  const made = SVG_NAMES.has(name) ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) {
    if (value !== false && value != null) made.setAttribute(attribute, value === true ? "" : value);
  }
  const given = children.flat(Infinity).filter(child => child !== false && child != null);
  made.append(...given.map(child => (child instanceof Node ? child : String(child))));
  return made;
}

/** Makes `parent` have these children. Elements that are there already stay, and with them focus and selection. */
export function show(parent, ...wanted) {
  patchChildren(parent, el("div", {}, ...wanted));
}

function patchChildren(parent, wanted) {
  const fresh = [...wanted.childNodes];
  const keys = new Set(fresh.map(keyOf));
  for (const child of [...parent.children]) {
    if (!keys.has(keyOf(child))) child.remove();
  }
  const known = new Map([...parent.children].map(child => [keyOf(child), child]));
  let place = parent.firstChild;
  for (const node of fresh) {
    const old = keyOf(node) ? known.get(keyOf(node)) : place;
    if (!old || old.nodeName !== node.nodeName || keyOf(old) !== keyOf(node)) {
      parent.insertBefore(node, place);
      continue;
    }
    if (old === place) place = place.nextSibling;
    else parent.insertBefore(old, place);
    patch(old, node);
  }
  while (place) {
    const next = place.nextSibling;
    place.remove();
    place = next;
  }
}

function patch(old, node) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== node.data) old.data = node.data;
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (!node.hasAttribute(name) && !isOfUser(old, name)) old.removeAttribute(name);
  }
  for (const { name, value } of node.attributes) {
    if (old.getAttribute(name) !== value && !isOfUser(old, name)) old.setAttribute(name, value);
  }
  patchChildren(old, node);
}

/** Whether the user changes this attribute: it opens and closes `details`. */
function isOfUser(element, attribute) {
  return element.nodeName === "DETAILS" && attribute === "open";
}

/** Rows and sections have keys, so that they stay the same elements when others come and go. */
function keyOf(node) {
  return node.dataset?.key ?? "";
}
