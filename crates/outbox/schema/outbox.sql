-- The outbox: events, written in the transaction of the change they tell.
--
-- Insert-only and partitioned by the day (UTC): no UPDATE and no DELETE ever touches it; whole partitions go at once.
-- `seq` is taken after the aggregate's row lock, so its order is version order for every aggregate; it comes before
-- `created_at` so that a later `seq` cannot carry a much earlier time. Rows are always inserted through the parent:
-- the relay finds open writers by their lock on it.
create sequence outbox_seq as bigint cache 1;

create table outbox (
    seq          bigint      not null default nextval('outbox_seq'),
    created_at   timestamptz not null default clock_timestamp(),
    event_id     uuid        not null,
    tenant       text        not null,
    aggregate_id text        not null,
    subject      text        not null,
    traceparent  text,
    payload      bytea       not null
) partition by range (created_at);

create index outbox_seq_idx on outbox (seq);

-- One row: who leads (lease and epoch), and how far it is known to have come (checkpoint). HOT updates only.
create table outbox_relay (
    only_row          boolean primary key default true check (only_row),
    holder            uuid,
    epoch             bigint      not null default 0,
    expires_at        timestamptz not null default '-infinity',
    outbox_seq        bigint      not null default 0,
    outbox_created_at timestamptz,
    stream_seq        bigint      not null default 0,
    stream_created_at timestamptz,
    checkpoint_at     timestamptz
) with (fillfactor = 50);

insert into outbox_relay default values;

-- Rows that were set aside because they, or an earlier row of their aggregate, cannot be published.
create table outbox_parked (
    seq          bigint      primary key,
    created_at   timestamptz not null,
    event_id     uuid        not null,
    tenant       text        not null,
    aggregate_id text        not null,
    subject      text        not null,
    reason       text        not null,
    epoch        bigint      not null,
    parked_at    timestamptz not null default clock_timestamp()
);

-- Makes the partitions from today to `days_ahead` days on. CREATE and ATTACH, because that does not wait for writers.
create function outbox_create_partitions(days_ahead integer) returns integer
    language plpgsql security definer set search_path from current as $$
declare
    first date := (clock_timestamp() at time zone 'UTC')::date;
    day   date;
    part  text;
    made  integer := 0;
begin
    perform pg_advisory_xact_lock(hashtextextended('outbox_create_partitions', 0));
    for day in select generate_series(first, first + days_ahead, interval '1 day')::date loop
        part := 'outbox_' || to_char(day, 'YYYYMMDD');
        if to_regclass(part) is null then
            execute format('create table %I (like outbox including all)', part);
            execute format('alter table outbox attach partition %I for values from (%L) to (%L)',
                part, day::text || ' 00:00:00+00', (day + 1)::text || ' 00:00:00+00');
            made := made + 1;
        end if;
    end loop;
    return made;
end $$;

revoke all on function outbox_create_partitions(integer) from public;

select outbox_create_partitions(8);
