// Calls to our own server, by addresses relative to the page, so that a proxy may put it anywhere.

const tags = new Map();

export class Refused extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", cache: "no-store", ...options });
  } catch {
    throw new Refused(0, "The server does not answer.");
  }
  if (response.status === 401) {
    location.reload(); // the cookie is no longer good: the server answers with the login page
    throw new Refused(401, "Log in again.");
  }
  if (!response.ok && response.status !== 304) {
    const problem = await response.json().catch(() => ({}));
    throw new Refused(response.status, problem.detail ?? `The server answered ${response.status}.`);
  }
  return response;
}

// The answer, or the one from before where the server says that it is the same.
export async function get(path) {
  const known = tags.get(path);
  const response = await call(path, known ? { headers: { "If-None-Match": known.tag } } : {});
  if (response.status === 304) return known.value;
  const value = await response.json();
  const tag = response.headers.get("ETag");
  if (tag) {
    if (tags.size > 200) tags.clear();
    tags.set(path, { tag, value });
  }
  return value;
}

export async function post(path) {
  const response = await call(path, { method: "POST" });
  return response.status === 204 ? null : response.json();
}
