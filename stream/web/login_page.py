"""The login page. It needs no other file (its style is allowed by hash, it has no script), so that no other path has to
be open without the token.
"""

from __future__ import annotations

import base64
import hashlib

from starlette.types import Send

_STYLE = """
:root{color-scheme:light dark}
body{margin:0;min-height:100vh;display:grid;place-items:center;font:16px/1.5 system-ui,sans-serif;background:Canvas}
form{width:min(22rem,88vw);display:grid;gap:.75rem}
h1{font-size:1.25rem;margin:0}
p{margin:0;font-size:.9rem}
label{font-weight:600;display:grid;gap:.25rem}
input,button{font:inherit;padding:.6rem .75rem;border-radius:.5rem;border:1px solid GrayText;box-sizing:border-box}
button{background:#1d5fd1;color:#fff;border-color:#1d5fd1;font-weight:600;cursor:pointer}
.failed{border-left:4px solid #c8321e;padding-left:.75rem}
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>Log in · sentstream</title><style>{style}</style></head>
<body><main><form method="post" action="{action}">
<h1>sentstream</h1>{failed}
<label>Token<input name="token" type="password" autocomplete="current-password" required autofocus></label>
<button>Log in</button>
<p>The token is the value of SENTSTREAM_HTTP_TOKEN where sentstream runs.</p>
</form></main></body></html>
"""

_FAILED = '<p class="failed" role="alert">That is not the token. Nothing was changed; try again.</p>'

POLICY = (
    "default-src 'none'; style-src 'sha256-"
    + base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    + "'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


def page(*, failed: bool) -> bytes:
    """The page; ``failed``: after a wrong token, shown at the path of the login call, one level deeper."""
    action = "login" if failed else "api/login"
    return _PAGE.format(style=_STYLE, action=action, failed=_FAILED if failed else "").encode()


async def send_page(send: Send, *, failed: bool) -> None:
    """Answer 401 with the page."""
    body = page(failed=failed)
    headers = [
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"content-security-policy", POLICY.encode()),
        (b"www-authenticate", b'Bearer realm="sentstream"'),
    ]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": body})
