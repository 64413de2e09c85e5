"""The face for applications and browsers: HTTP, server-sent events and the dashboard.

Read in this order: `live` (what is true now, and who is told), `follow` (where it comes from), `guard` (who may ask),
`app` (the calls), `server` (the process).
"""
