"""Settings of lag, logs and tests."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from stream.config.fields import Duration, Size, setting


class LagSettings(BaseModel):
    model_config = ConfigDict(title="Lag")

    lag_window: Duration = setting("60s", "Time over which a lag is judged.", reload=True)
    lag_allowed: Duration = setting("10s", "Lag that is no reason to worry.", reload=True)
    slot_allowed: Size = setting("1GB", "WAL held by the slot that is no reason to worry.", reload=True)
    stall_restart: Duration = setting(
        "60s", "A role that stands still this long while there is work restarts itself.", reload=True
    )


class LogSettings(BaseModel):
    model_config = ConfigDict(title="Logs")

    log_format: Literal["text", "json"] = setting("text", "`text` for people, `json` for machines.")
    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "info", "Least severity that is logged.", reload=True
    )


class TestingSettings(BaseModel):
    model_config = ConfigDict(title="Testing")

    failpoints: str = setting(
        "",
        "Named places where the process trips, for tests of crashes: `place=kill|stop|raise[:nth]`.",
        example="after_commit=kill:3",
    )
