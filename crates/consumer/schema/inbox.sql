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
    expires_at timestamptz not null,
    -- How far the effects in this database go: every event of the stream, known by when it was created, up to this
    -- sequence is settled. When the database is older than the broker thinks, they come again from here.
    stream_created_at timestamptz,
    floor             bigint,
    -- The same of what was replayed to this consumer, in the stream of replays.
    replays_floor     bigint,
    -- An event that was handled, as JSON. While the stream lacks it, what the effects were made of was undone by a restore of the
    -- producer's database: that is said until it is there again, or somebody sets this to null.
    anchor            jsonb,
    -- How many events the stream dropped before this consumer had them. Set it to 0 when what it makes has been rebuilt.
    trimmed_unread    bigint not null default 0
) with (fillfactor = 50);

-- The events that are dead: not handled, or behind one of their aggregate that was not. In the order in which they died.
-- A replay that is handled takes its event out; until the last has gone, the aggregate's later events end here too.
create table inbox_dead (
    number        bigint      generated always as identity,
    consumer      text        not null,
    aggregate_id  text        not null,
    source        text        not null,
    event_id      text        not null,
    reason        text        not null,
    -- Whether the dead-letter stream has it.
    letter_stored boolean     not null default false,
    died_at       timestamptz not null default clock_timestamp(),
    primary key (consumer, source, event_id)
);

create index inbox_dead_aggregate_idx on inbox_dead (consumer, aggregate_id, number);
