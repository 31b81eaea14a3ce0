-- What the migrations up to 0018 come to, for a new database: the tables of the service itself. A test compares both ways.

-- Todos of all tenants. The order of ids (UUIDv7) is the order of creation, so lists page by id.
create table todo (
    tenant        text        not null,
    id            uuid        not null,
    title         text        not null check (char_length(title) between 1 and 500),
    notes         text        not null check (char_length(notes) <= 10000),
    status        text        not null check (status in ('OPEN', 'COMPLETED')),
    due_time      timestamptz,
    labels        text[]      not null check (cardinality(labels) <= 20),
    assignee      text,
    create_time   timestamptz not null,
    update_time   timestamptz not null,
    complete_time timestamptz,
    delete_time   timestamptz,
    created_by    text        not null,
    version       integer     not null check (version >= 1),
    -- How it recurs, and which one of its series it is.
    recurrence_rule      text,
    recurrence_zone      text,
    recurrence_basis     text,
    recurrence_wall_time timestamp,
    series_id            uuid,
    occurrence           integer,
    primary key (tenant, id),
    constraint todo_completed_has_a_time check ((status = 'COMPLETED') = (complete_time is not null))
);

-- One composite index, tenant first, for each way to list.
create index todo_list_idx on todo (tenant, id) where delete_time is null;
create index todo_status_idx on todo (tenant, status, id) where delete_time is null;
create index todo_assignee_idx on todo (tenant, assignee, id) where delete_time is null;

-- The labels of todos that are not deleted, for lists by label.
create table todo_label (
    tenant  text not null,
    label   text not null,
    todo_id uuid not null,
    primary key (tenant, label, todo_id),
    foreign key (tenant, todo_id) references todo (tenant, id)
);

create index todo_label_todo_idx on todo_label (tenant, todo_id);

-- Row-level security: the tenant is a setting of the transaction, and there is no way around it for the service's role.
alter table todo       enable row level security;
alter table todo       force row level security;
alter table todo_label enable row level security;
alter table todo_label force row level security;

create policy of_tenant on todo to todo_app
    using (tenant = current_setting('app.tenant', true)) with check (tenant = current_setting('app.tenant', true));
create policy of_tenant on todo_label to todo_app
    using (tenant = current_setting('app.tenant', true)) with check (tenant = current_setting('app.tenant', true));

grant select, insert, update on todo to todo_app;
grant select, insert, delete on todo_label to todo_app;

-- Each place in a series is one todo's: whoever would take it a second time finds it taken.
create table todo_occurrence (
    tenant     text    not null,
    series_id  uuid    not null,
    occurrence integer not null check (occurrence >= 1),
    todo_id    uuid    not null,
    constraint todo_occurrence_once primary key (tenant, series_id, occurrence),
    foreign key (tenant, todo_id) references todo (tenant, id)
);

alter table todo_occurrence enable row level security;
alter table todo_occurrence force row level security;

create policy of_tenant on todo_occurrence to todo_app
    using (tenant = current_setting('app.tenant', true)) with check (tenant = current_setting('app.tenant', true));

grant select, insert on todo_occurrence to todo_app;

-- When something is to be done with a todo by itself. A row stands for as long as that is so, whichever release changes the todo.
create table todo_timer (
    tenant     text collate "C" not null,
    -- DUE: its due time is to be announced. PURGE: it was deleted, and what it held is to go.
    kind       text        not null check (kind in ('DUE', 'PURGE')),
    todo_id    uuid        not null,
    time       timestamptz not null,
    -- From when on it may be claimed: its time, or when it was set if that is later; after a claim, a minute later.
    claim_time timestamptz not null,
    primary key (tenant, kind, todo_id)
);

-- By an expression, so that a look at one tenant never goes by this index and past all others' rows, whatever the statistics say. (With
-- row-level security the planner takes its order only where a statement names all of it.)
create index todo_timer_claim_idx on todo_timer ((kind || ''), claim_time);
create index todo_timer_tenant_idx on todo_timer (kind, tenant, claim_time);

alter table todo_timer enable row level security;
alter table todo_timer force row level security;

create policy of_tenant on todo_timer to todo_app
    using (tenant = current_setting('app.tenant', true)) with check (tenant = current_setting('app.tenant', true));
-- Claims run as the owner, of all tenants.
create policy claim on todo_timer to current_user using (true);

grant select, insert, update, delete on todo_timer to todo_app;

create function todo_set_timers() returns trigger language plpgsql as $$
declare
    is_due      timestamptz := case when new.status = 'OPEN' and new.delete_time is null then new.due_time end;
    was_due     timestamptz;
    was_deleted timestamptz;
begin
    if tg_op = 'UPDATE' then
        was_due := case when old.status = 'OPEN' and old.delete_time is null then old.due_time end;
        was_deleted := old.delete_time;
    end if;
    if is_due is null then
        delete from todo_timer where tenant = new.tenant and kind = 'DUE' and todo_id = new.id;
    elsif is_due is distinct from was_due then
        insert into todo_timer (tenant, kind, todo_id, time, claim_time)
        values (new.tenant, 'DUE', new.id, is_due, greatest(is_due, clock_timestamp()))
        on conflict (tenant, kind, todo_id) do update set time = excluded.time, claim_time = excluded.claim_time;
    end if;
    if new.delete_time is null then
        delete from todo_timer where tenant = new.tenant and kind = 'PURGE' and todo_id = new.id;
    elsif new.delete_time is distinct from was_deleted then
        insert into todo_timer (tenant, kind, todo_id, time, claim_time)
        values (new.tenant, 'PURGE', new.id, new.delete_time, new.delete_time)
        on conflict (tenant, kind, todo_id) do update set time = excluded.time, claim_time = excluded.claim_time;
    end if;
    return null;
end $$;

create trigger set_timers_of_a_new_one after insert on todo
    for each row when (new.due_time is not null) execute function todo_set_timers();
create trigger set_timers after update of status, due_time, delete_time on todo
    for each row when ((new.status, new.due_time, new.delete_time) is distinct from (old.status, old.due_time, old.delete_time))
    execute function todo_set_timers();

-- Claims up to `at_most`, for a minute, of what may be claimed since `late_by` seconds. When there is more, half of it is the oldest, and
-- half is some of each tenant in turn, from the one behind `after_tenant` on. The last row has no id, and the tenant to go on behind.
create function todo_timer_claim(of_kind text, late_by double precision, after_tenant text, at_most integer)
    returns table (of_tenant text, id uuid)
    language plpgsql security definer as $$
declare
    up_to      constant timestamptz := clock_timestamp() - make_interval(secs => late_by);
    of_each    constant integer := 10;
    of_tenants constant integer := 1000;
    waiting    bigint;
    claimed    integer := 0;
    turn       text := after_tenant;
    due        record;
begin
    select count(*) into waiting from (
        select from todo_timer where kind || '' = of_kind and claim_time <= up_to
        order by kind || '', claim_time limit at_most + 1
    ) counted;
    for due in
        select ctid, tenant, todo_id from todo_timer where kind || '' = of_kind and claim_time <= up_to
        order by kind || '', claim_time limit case when waiting > at_most then at_most / 2 else at_most end
        for update skip locked
    loop
        of_tenant := due.tenant;
        id := due.todo_id;
        return next;
        claimed := claimed + 1;
        update todo_timer set claim_time = up_to + interval '1 minute' where ctid = due.ctid;
    end loop;
    if waiting <= at_most then
        turn := null;
    end if;
    for looked in 1 .. of_tenants loop
        exit when turn is null or claimed >= at_most;
        select tenant into turn from todo_timer where kind = of_kind and tenant > turn order by tenant limit 1;
        exit when turn is null;
        for due in
            select ctid, todo_id from todo_timer where kind = of_kind and tenant = turn and claim_time <= up_to
            order by kind, tenant, claim_time limit least(of_each, at_most - claimed) for update skip locked
        loop
            of_tenant := turn;
            id := due.todo_id;
            return next;
            claimed := claimed + 1;
            update todo_timer set claim_time = up_to + interval '1 minute' where ctid = due.ctid;
        end loop;
    end loop;
    of_tenant := coalesce(turn, '');
    id := null;
    return next;
end $$;

-- For how many seconds more than `late_by` the oldest may be claimed.
create function todo_timer_late(of_kind text, late_by double precision) returns double precision
    language sql security definer as $$
    select coalesce(greatest(0, extract(epoch from clock_timestamp() - (
        select claim_time from todo_timer where kind || '' = of_kind order by kind || '', claim_time limit 1
    )) - late_by), 0)
$$;

revoke all on function todo_timer_claim(text, double precision, text, integer) from public;
revoke all on function todo_timer_late(text, double precision) from public;
grant execute on function todo_timer_claim(text, double precision, text, integer) to todo_operator;
grant execute on function todo_timer_late(text, double precision) to todo_operator;

do $$
declare
    function text;
begin
    foreach function in array array['todo_set_timers()', 'todo_timer_late(text, double precision)',
                                    'todo_timer_claim(text, double precision, text, integer)'] loop
        execute format('alter function %s set search_path = %I, pg_temp', function, current_schema());
    end loop;
end $$;
