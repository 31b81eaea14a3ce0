-- When the relay was seen to have stored all of a day. A message lies in the stream for its age from then on, not from when its row was
-- written: a relay that halted for a weekend publishes Friday's rows on Monday.
create table outbox_passed (
    day date        primary key,
    at  timestamptz not null default clock_timestamp()
);

-- Drops the partitions of days that ended more than `keep_days` ago and were stored as long ago, oldest first, as long as every
-- row of them is known to be safely stored and none is parked. The newest row that is known to be stored is kept. In one
-- transaction under the table's exclusive lock, which it waits for no longer than it takes to make nobody else wait: if it is
-- not to be had, the next round tries again. (DETACH CONCURRENTLY cannot run in a function, and the relay owns nothing.)
create or replace function outbox_drop_partitions(keep_days integer) returns integer
    language plpgsql security definer set search_path from current set lock_timeout = '100ms' as $$
declare
    part    record;
    newest  bigint;
    stored  bigint;
    today   date := (clock_timestamp() at time zone 'UTC')::date;
    may     boolean := true;
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
        exit when part.day >= today;
        select outbox_seq into stored from outbox_relay;
        execute format('select coalesce(max(seq), 0) from %I', part.name) into newest;
        -- An empty day may go; else it must be safely stored, with a newer row known to be so.
        exit when newest > 0 and newest >= stored;
        insert into outbox_passed (day) values (part.day) on conflict do nothing;
        may := may and part.day + 1 + keep_days <= today
            and (select at from outbox_passed where day = part.day) < clock_timestamp() - make_interval(days => keep_days);
        -- Later days are still looked at, for when they were stored.
        continue when not may;
        lock table outbox in access exclusive mode;
        execute format('select coalesce(max(seq), 0) from %I', part.name) into newest;
        exit when newest > 0 and newest >= stored;
        exit when exists (select from outbox_parked where state = 'parked'
            and created_at >= part.day::timestamp at time zone 'UTC'
            and created_at < (part.day + 1)::timestamp at time zone 'UTC');
        execute format('alter table outbox detach partition %I', part.name);
        execute format('drop table %I', part.name);
        update outbox_relay set dropped_seq = greatest(dropped_seq, newest);
        delete from outbox_parked where state <> 'parked' and created_at >= part.day::timestamp at time zone 'UTC'
            and created_at < (part.day + 1)::timestamp at time zone 'UTC';
        delete from outbox_passed where day = part.day;
        insert into outbox_journal (kind, actor, to_seq, detail)
            values ('dropped', 'retention', newest, 'the partition of ' || part.day);
        dropped := dropped + 1;
    end loop;
    return dropped;
end $$;

-- Whoever replaces a function replaces its settings too.
do $$
declare
    part record;
begin
    execute format('alter function outbox_drop_partitions(integer) set search_path = %I, pg_temp', current_schema());
    -- Days gone by were stored as they went by, as far as anybody knows.
    for part in
        select to_date(right(c.relname, 8), 'YYYYMMDD') as day
        from pg_inherits i join pg_class c on c.oid = i.inhrelid
        where i.inhparent = 'outbox'::regclass and c.relname ~ '^outbox_[0-9]{8}$'
    loop
        if part.day < (clock_timestamp() at time zone 'UTC')::date then
            insert into outbox_passed (day, at) values (part.day, (part.day + 1)::timestamp at time zone 'UTC');
        end if;
    end loop;
end $$;
