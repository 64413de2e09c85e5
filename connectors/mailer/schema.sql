-- The tables of the mailer (a listmonk fork that queues its mail) that sentstream reads, as the mailer makes them:
-- the demo, the simulator, tests and benchmarks run on these. Other tables of the mailer are left out.
--
-- Names are unqualified on purpose: everything goes to the first schema of search_path. Loading it twice fails.

CREATE TYPE campaign_status AS ENUM ('draft', 'running', 'scheduled', 'paused', 'cancelled', 'finished');

CREATE TABLE subscribers (
    id          serial PRIMARY KEY,
    uuid        uuid NOT NULL UNIQUE DEFAULT gen_random_uuid(),
    email       text NOT NULL UNIQUE,
    name        text NOT NULL DEFAULT '',
    attribs     jsonb NOT NULL DEFAULT '{}',
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now()
);

-- messenger 'automatic' means the queue; use_queue is set only after queueing.
-- body is long: it is TOASTed, and comes as "unchanged" in an update of another column.
CREATE TABLE campaigns (
    id                  serial PRIMARY KEY,
    uuid                uuid NOT NULL UNIQUE DEFAULT gen_random_uuid(),
    name                text NOT NULL,
    subject             text NOT NULL DEFAULT '',
    body                text NOT NULL DEFAULT '',
    status              campaign_status NOT NULL DEFAULT 'draft',
    messenger           text NOT NULL DEFAULT 'automatic',
    to_send             int DEFAULT 0,
    sent                int DEFAULT 0,
    use_queue           boolean NOT NULL DEFAULT false,
    queued_at           timestamptz,
    queue_completed_at  timestamptz,
    auto_paused         boolean NOT NULL DEFAULT false,
    auto_paused_at      timestamptz,
    testing_mode        boolean NOT NULL DEFAULT false,
    started_at          timestamptz,
    created_at          timestamptz NOT NULL DEFAULT now(),
    updated_at          timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX idx_camps_status ON campaigns (status);
CREATE INDEX idx_camps_name ON campaigns (name);
CREATE INDEX idx_camps_created_at ON campaigns (created_at);
CREATE INDEX idx_camps_updated_at ON campaigns (updated_at);
CREATE INDEX idx_camps_use_queue ON campaigns (use_queue);
CREATE INDEX idx_camps_queued_at ON campaigns (queued_at);
CREATE INDEX idx_camps_auto_paused ON campaigns (auto_paused);

-- No unique key over campaign and subscriber: a subscriber on two lists has two rows.
CREATE TABLE email_queue (
    id                         bigserial PRIMARY KEY,
    campaign_id                int NOT NULL REFERENCES campaigns (id) ON DELETE CASCADE,
    subscriber_id              int NOT NULL REFERENCES subscribers (id) ON DELETE CASCADE,
    status                     varchar(20) NOT NULL DEFAULT 'queued'
                               CONSTRAINT email_queue_status_check
                               CHECK (status IN ('queued', 'sending', 'sent', 'failed', 'cancelled')),
    priority                   int DEFAULT 0,
    scheduled_at               timestamptz NOT NULL DEFAULT now(),
    sent_at                    timestamptz,
    assigned_smtp_server_uuid  varchar(255),
    retry_count                int DEFAULT 0,
    last_error                 text,
    created_at                 timestamptz DEFAULT now(),
    updated_at                 timestamptz DEFAULT now()
);
CREATE INDEX idx_email_queue_status ON email_queue (status);
CREATE INDEX idx_email_queue_scheduled_at ON email_queue (scheduled_at);
CREATE INDEX idx_email_queue_campaign_id ON email_queue (campaign_id);
CREATE INDEX idx_email_queue_smtp_server ON email_queue (assigned_smtp_server_uuid);
CREATE INDEX idx_email_queue_status_scheduled ON email_queue (status, scheduled_at);

CREATE TABLE settings (
    key         text NOT NULL UNIQUE,
    value       jsonb NOT NULL DEFAULT '{}',
    updated_at  timestamptz DEFAULT now()
);
INSERT INTO settings (key, value) VALUES
    ('app.send_time_start', '""'),
    ('app.send_time_end', '""'),
    ('app.timezone', '"America/New_York"'),
    ('app.account_rate_limit_per_minute', '30'),
    ('app.account_rate_limit_per_hour', '100'),
    ('app.testing_mode', 'false'),
    ('app.queue_paused', 'false');

-- What the stats page counts. Views stay when a subscriber is deleted, and go with the campaign.
CREATE TABLE campaign_views (
    id             bigserial PRIMARY KEY,
    campaign_id    int NOT NULL REFERENCES campaigns (id) ON DELETE CASCADE,
    subscriber_id  int REFERENCES subscribers (id) ON DELETE SET NULL,
    created_at     timestamptz DEFAULT now()
);
CREATE INDEX idx_views_camp_id ON campaign_views (campaign_id);

CREATE TABLE link_clicks (
    id             bigserial PRIMARY KEY,
    campaign_id    int REFERENCES campaigns (id) ON DELETE CASCADE,
    link_id        int,
    subscriber_id  int REFERENCES subscribers (id) ON DELETE SET NULL,
    created_at     timestamptz DEFAULT now()
);
CREATE INDEX idx_clicks_camp_id ON link_clicks (campaign_id);

-- Optional in the mailer: one row a mail handed over to Azure, and what Azure told of it afterwards.
CREATE TABLE azure_message_tracking (
    id                bigserial PRIMARY KEY,
    azure_message_id  uuid NOT NULL UNIQUE,
    campaign_id       int NOT NULL REFERENCES campaigns (id) ON DELETE CASCADE,
    subscriber_id     int NOT NULL REFERENCES subscribers (id) ON DELETE CASCADE,
    smtp_server_uuid  uuid,
    sent_at           timestamptz DEFAULT now(),
    created_at        timestamptz DEFAULT now()
);
CREATE INDEX idx_azure_tracking_campaign ON azure_message_tracking (campaign_id);
CREATE INDEX idx_azure_tracking_subscriber ON azure_message_tracking (subscriber_id);

CREATE TABLE azure_delivery_events (
    id                bigserial PRIMARY KEY,
    azure_message_id  uuid NOT NULL,
    campaign_id       int REFERENCES campaigns (id) ON DELETE CASCADE,
    subscriber_id     int REFERENCES subscribers (id) ON DELETE CASCADE,
    status            varchar(50) NOT NULL,
    status_reason     text,
    event_timestamp   timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX idx_azure_delivery_message ON azure_delivery_events (azure_message_id);
CREATE INDEX idx_azure_delivery_campaign ON azure_delivery_events (campaign_id);

CREATE TABLE azure_engagement_events (
    id                bigserial PRIMARY KEY,
    azure_message_id  uuid NOT NULL,
    campaign_id       int REFERENCES campaigns (id) ON DELETE CASCADE,
    subscriber_id     int REFERENCES subscribers (id) ON DELETE CASCADE,
    engagement_type   varchar(50) NOT NULL,
    event_timestamp   timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX idx_azure_engagement_message ON azure_engagement_events (azure_message_id);
CREATE INDEX idx_azure_engagement_campaign ON azure_engagement_events (campaign_id);
