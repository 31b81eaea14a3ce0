-- What operators see and do: the relay's journal, parked rows that were worked, and retention.

-- What happened to the outbox and its stream beyond the everyday, by the relay and by operators. Nothing removes a line.
create table outbox_journal (
    id       bigint generated always as identity primary key,
    at       timestamptz not null default clock_timestamp(),
    kind     text        not null check (kind in
        ('refill', 'missing', 'halted', 'resumed', 'parked', 'released', 'discarded', 'accepted', 'dropped')),
    -- The operator who did it, or the relay, by its epoch.
    actor    text        not null,
    -- The rows it is about, where it is about rows.
    from_seq bigint,
    to_seq   bigint,
    detail   text        not null
);

-- A parked row is published again by a copy under a new `seq`, or given up; the relay passes over all but 'parked'.
alter table outbox_parked add column state text not null default 'parked'
    check (state in ('parked', 'released', 'discarded'));

-- The rows up to here were dropped by retention; how far an operator has vouched for a stream that is ahead.
alter table outbox_relay
    add column dropped_seq         bigint not null default 0,
    add column accepted_stream_seq bigint,
    add column accepted_stream_created_at timestamptz,
    add column accepted_outbox_seq bigint;

-- Drops the partitions of days that ended more than `keep_days` ago, oldest first, as long as every row of them is
-- known to be safely stored and none is parked. The newest row that is known to be stored is kept. In one transaction
-- under the table's exclusive lock, which it waits for no longer than it takes to make nobody else wait: if it is not
-- to be had, the next round tries again. (DETACH CONCURRENTLY cannot run in a function, and the relay owns nothing.)
create function outbox_drop_partitions(keep_days integer) returns integer
    language plpgsql security definer set search_path from current set lock_timeout = '100ms' as $$
declare
    part    record;
    newest  bigint;
    stored  bigint;
    dropped integer := 0;
begin
    if keep_days < 1 then
        raise exception 'an outbox keeps its rows for a day at least';
    end if;
    for part in
        select c.relname as name, to_date(right(c.relname, 8), 'YYYYMMDD') as day
        from pg_inherits i join pg_class c on c.oid = i.inhrelid
        -- Partitions that somebody has attached under names of their own are theirs to drop.
        where i.inhparent = 'outbox'::regclass and c.relname ~ '^outbox_[0-9]{8}$'
        order by 2
    loop
        exit when part.day + 1 + keep_days > (clock_timestamp() at time zone 'UTC')::date;
        lock table outbox in access exclusive mode;
        select outbox_seq into stored from outbox_relay;
        execute format('select coalesce(max(seq), 0) from %I', part.name) into newest;
        -- An empty day may go; else it must be safely stored, with a newer row known to be so.
        exit when newest > 0 and newest >= stored;
        exit when exists (select from outbox_parked where state = 'parked'
            and created_at >= part.day::timestamp at time zone 'UTC'
            and created_at < (part.day + 1)::timestamp at time zone 'UTC');
        execute format('alter table outbox detach partition %I', part.name);
        execute format('drop table %I', part.name);
        update outbox_relay set dropped_seq = greatest(dropped_seq, newest);
        delete from outbox_parked where state <> 'parked' and created_at >= part.day::timestamp at time zone 'UTC'
            and created_at < (part.day + 1)::timestamp at time zone 'UTC';
        insert into outbox_journal (kind, actor, to_seq, detail)
            values ('dropped', 'retention', newest, 'the partition of ' || part.day);
        dropped := dropped + 1;
    end loop;
    return dropped;
end $$;

revoke all on function outbox_drop_partitions(integer) from public;

-- What runs as the owner looks for tables where the owner has them, and last of all among a caller's temporary ones.
do $$ begin
    execute format('alter function outbox_create_partitions(integer) set search_path = %I, pg_temp', current_schema());
    execute format('alter function outbox_drop_partitions(integer) set search_path = %I, pg_temp', current_schema());
end $$;
