"""Settings of everything that listens."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from stream.config.fields import Listen, Origins, Secret, Words, setting
from stream.config.values import split_address


class HttpSettings(BaseModel):
    model_config = ConfigDict(title="HTTP")

    http_listen: Listen = setting(
        "127.0.0.1:8087",
        "Address and port of the API and the dashboard; `off` for none. Without HTTP_TOKEN only a loopback "
        "address is accepted.",
    )
    http_token: Secret = setting("", "Bearer token that every call but the health calls needs.")
    http_allowed_hosts: Words = setting(
        (), "Host names, beside loopback, that requests may be addressed to.", example="sentstream.example.org"
    )
    http_allowed_origins: Origins = setting(
        (),
        "Origins, beside ours, whose pages may call the API; these get CORS too.",
        example="https://mail.example.org",
    )
    http_max_streams: int = setting(2000, "Open event streams at once.", ge=1)
    http_trusted_proxies: Words = setting(
        (), "Addresses of proxies whose X-Forwarded-* headers are believed.", example="127.0.0.1"
    )
    metrics_listen: Listen = setting(
        "off",
        "Address and port at which `run`, `read`, `work` and `reconcile` show `/metrics`, `/livez` and "
        "`/readyz`; the rules of HTTP_LISTEN hold. The roles that `run` starts take the ports from there on.",
        example="127.0.0.1:9087",
    )

    @property
    def http_address(self) -> tuple[str, int] | None:
        """Host and port to listen on, None where HTTP is off."""
        return None if self.http_listen == "off" else split_address(self.http_listen)

    @property
    def metrics_address(self) -> tuple[str, int] | None:
        """Host and port of METRICS_LISTEN, None where it is off."""
        return None if self.metrics_listen == "off" else split_address(self.metrics_listen)
