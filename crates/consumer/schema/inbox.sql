-- What a consumer whose effects are in this database keeps beside them.

-- The events that were handled: the row and the effect are one transaction, so no effect happens twice.
create table inbox (
    consumer   text        not null,
    source     text        not null,
    event_id   text        not null,
    handled_at timestamptz not null default clock_timestamp(),
    primary key (consumer, source, event_id)
);

create index inbox_handled_at_idx on inbox (consumer, handled_at);

-- Who pulls for a consumer: one process at a time, by a lease with an epoch.
create table inbox_lease (
    consumer   text        primary key,
    holder     uuid        not null,
    epoch      bigint      not null,
    expires_at timestamptz not null
) with (fillfactor = 50);

-- The aggregates that a dead letter holds up: their later events become letters behind it, in order.
create table inbox_parked (
    consumer     text        not null,
    aggregate_id text        not null,
    source       text        not null,
    event_id     text        not null,
    reason       text        not null,
    parked_at    timestamptz not null default clock_timestamp(),
    primary key (consumer, aggregate_id)
);
