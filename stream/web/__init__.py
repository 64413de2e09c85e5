"""HTTP API, server-sent events and the dashboard.

Read in this order: `live_state` (state and event streams), `database_poll` (where the state comes from), `access`
(checks before each call), `app` (the calls), `server` (the process).
"""
