-- What operators work with: dead letters and their stories, replays as jobs, and who did what. These rows outlive the
-- broker; the messages that they were made of do not need them.

-- An event that a consumer did not handle. Exactly one of four states; nothing removes a row.
create table letter (
    id              bigint      generated always as identity primary key,
    consumer        text        not null,
    -- Where the event is, or was, in its stream.
    stream          text        not null,
    stream_sequence bigint      not null,
    stored_at       timestamptz not null,
    subject         text        not null,
    -- The event's own; empty when it is none.
    source          text        not null,
    event_id        text        not null,
    event_type      text        not null,
    tenant          text        not null,
    aggregate_id    text        not null,
    sequence        text        not null,
    trace_id        text        not null,
    headers         jsonb       not null,
    -- As it died; null when it was too large for a letter.
    payload         bytea,
    -- What is replayed in its place, once an operator has mended it.
    edited          bytea,
    error_class     text        not null,
    group_id        text        not null generated always as
        (left(md5(consumer || '/' || event_type || '/' || error_class), 8)) stored,
    state           text        not null default 'open' check (state in ('open', 'failed_again', 'handled', 'discarded')),
    first_failed_at timestamptz not null,
    last_died_at    timestamptz not null,
    settled_at      timestamptz,
    -- Which job, or which operator and why.
    settled_by      text
);

-- The same event dead twice for a consumer is one letter with two stories, for as long as it is not settled.
create unique index letter_unsettled_idx on letter (consumer, source, event_id)
    where state in ('open', 'failed_again') and event_id <> '';
create index letter_aggregate_idx on letter (consumer, aggregate_id) where state in ('open', 'failed_again');
create index letter_group_idx on letter (group_id, state);

-- One death: what the consumer told of it. A letter has as many as it has died.
create table death (
    -- The name that the consumer gave it: told twice, it is one.
    key          text        primary key,
    letter       bigint      not null references letter,
    dlq_sequence bigint      not null,
    died_at      timestamptz not null,
    attempts     bigint      not null,
    reason       text        not null,
    -- The code that failed.
    version      text        not null,
    -- The replay that it was, if it was one.
    replay       text
);

create index death_letter_idx on death (letter, died_at);

-- A replay, or a discard, of a selection that is frozen when it is asked for.
create table job (
    id           bigint           generated always as identity primary key,
    kind         text             not null check (kind in ('replay', 'discard', 'range')),
    consumer     text             not null,
    actor        text             not null,
    reason       text             not null,
    -- What was asked for.
    selection    jsonb            not null,
    canary       integer          not null check (canary >= 0),
    rate         double precision not null check (rate > 0),
    max_failures double precision not null check (max_failures between 0 and 1),
    state        text             not null default 'running' check (state in ('running', 'paused', 'done', 'aborted')),
    -- Why it is so, in words.
    story        text             not null default '',
    total        bigint           not null,
    created_at   timestamptz      not null default clock_timestamp(),
    -- When the canary had passed: the rate grows from then on.
    ramp_at      timestamptz,
    ended_at     timestamptz,
    -- Which process works on it.
    holder       uuid,
    epoch        bigint           not null default 0,
    expires_at   timestamptz      not null default '-infinity'
);

create table job_item (
    job             bigint      not null references job,
    -- The order in which they go; within an aggregate one waits for the other.
    n               bigint      not null,
    letter          bigint      references letter,
    stream_sequence bigint      not null,
    aggregate_id    text        not null,
    state           text        not null default 'waiting'
        check (state in ('waiting', 'sent', 'handled', 'failed', 'skipped')),
    tries           integer     not null default 0,
    sent_at         timestamptz,
    -- Where it is in the stream of replays.
    replay_sequence bigint,
    outcome         text,
    settled_at      timestamptz,
    primary key (job, n)
);

-- No letter is in two unfinished jobs.
create unique index job_item_letter_idx on job_item (letter) where state in ('waiting', 'sent') and letter is not null;
create index job_item_open_idx on job_item (job, aggregate_id, n) where state in ('waiting', 'sent');

-- Who did what, when, why, and what came of it. Nothing changes or removes a line.
create table audit (
    id      bigint      generated always as identity primary key,
    at      timestamptz not null default clock_timestamp(),
    -- The operator, by a verified token; or the service itself, for what followed from an operator's act.
    actor   text        not null,
    action  text        not null,
    reason  text        not null,
    -- How many letters, events or consumers it was about.
    count   bigint      not null,
    detail  jsonb       not null default '{}'
);

create function audit_stays() returns trigger language plpgsql as $$
begin
    raise exception 'the audit is only added to';
end $$;
create trigger audit_stays before update or delete or truncate on audit execute function audit_stays();

grant usage on schema public to operations_app;
grant select, insert, update on letter, job, job_item to operations_app;
grant select, insert on death, audit to operations_app;
