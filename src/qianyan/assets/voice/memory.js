/* What the browser keeps for the page, where it is allowed to keep anything. */

export function recall(storage, name) {
  try {
    return window[storage].getItem(name);
  } catch {
    return null;
  }
}

export function keep(storage, name, value) {
  try {
    window[storage].setItem(name, value);
  } catch {
    // The browser keeps nothing for this page: it is asked again next time.
  }
}

export function forget(storage, name) {
  try {
    window[storage].removeItem(name);
  } catch {
    // Nothing was kept.
  }
}
