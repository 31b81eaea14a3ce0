-- When something is to be done with a todo by itself. A row stands for as long as that is so, whichever release changes the todo.
create table todo_timer (
    tenant     text        not null,
    -- DUE: its due time is to be announced. PURGE: it was deleted, and the row is to go.
    kind       text        not null check (kind in ('DUE', 'PURGE')),
    todo_id    uuid        not null,
    time       timestamptz not null,
    -- From when on it may be claimed: its time, and after a claim a minute later.
    claim_time timestamptz not null,
    primary key (tenant, kind, todo_id)
);

create index todo_timer_claim_idx on todo_timer (kind, claim_time);
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
    is_due  timestamptz := case when new.status = 'OPEN' and new.delete_time is null then new.due_time end;
    was_due timestamptz;
begin
    if tg_op = 'UPDATE' and old.status = 'OPEN' and old.delete_time is null then
        was_due := old.due_time;
    end if;
    if is_due is null then
        delete from todo_timer where tenant = new.tenant and kind = 'DUE' and todo_id = new.id;
    elsif is_due is distinct from was_due then
        insert into todo_timer (tenant, kind, todo_id, time, claim_time)
        values (new.tenant, 'DUE', new.id, is_due, is_due)
        on conflict (tenant, kind, todo_id) do update set time = excluded.time, claim_time = excluded.claim_time;
    end if;
    if new.delete_time is null then
        delete from todo_timer where tenant = new.tenant and kind = 'PURGE' and todo_id = new.id;
    else
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

-- Claims up to `at_most` whose time was `late_by` seconds ago, for a minute. When there are more, it takes some of each tenant,
-- in the order of tenants, those behind `after_tenant`.
create function todo_timer_claim(of_kind text, late_by double precision, after_tenant text, at_most integer)
    returns table (of_tenant text, id uuid)
    language plpgsql security definer as $$
declare
    up_to constant timestamptz := clock_timestamp() - make_interval(secs => late_by);
    of_each constant integer := 25;
    waiting bigint;
begin
    select count(*) into waiting
    from (select from todo_timer where kind = of_kind and claim_time <= up_to limit at_most + 1) counted;
    if waiting <= at_most then
        return query
        with due as (
            select tenant, todo_id from todo_timer where kind = of_kind and claim_time <= up_to
            limit at_most for update skip locked
        )
        update todo_timer timer set claim_time = up_to + interval '1 minute'
        from due where (timer.tenant, timer.kind, timer.todo_id) = (due.tenant, of_kind, due.todo_id)
        returning timer.tenant, timer.todo_id;
        return;
    end if;
    return query
    with recursive tenants (tenant) as (
        select min(tenant) from todo_timer where kind = of_kind and tenant > after_tenant
        union all
        select (select min(timer.tenant) from todo_timer timer where timer.kind = of_kind and timer.tenant > tenants.tenant)
        from tenants where tenants.tenant is not null
    ), due as (
        select picked.tenant, picked.todo_id
        from tenants cross join lateral (
            select timer.tenant, timer.todo_id from todo_timer timer
            where timer.kind = of_kind and timer.tenant = tenants.tenant and timer.claim_time <= up_to
            order by timer.claim_time limit of_each for update skip locked
        ) picked
        limit at_most
    )
    update todo_timer timer set claim_time = up_to + interval '1 minute'
    from due where (timer.tenant, timer.kind, timer.todo_id) = (due.tenant, of_kind, due.todo_id)
    returning timer.tenant, timer.todo_id;
end $$;

-- How many seconds ago the oldest that may be claimed was due.
create function todo_timer_late(of_kind text, late_by double precision) returns double precision
    language sql security definer as $$
    select coalesce(greatest(0, extract(epoch from clock_timestamp() - min(claim_time)) - late_by), 0)
    from todo_timer where kind = of_kind
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

-- The row of a deleted todo goes after some time, and no other row ever does. That an occurrence was taken is still known then.
grant delete on todo to todo_app;
create policy deleted_long_ago on todo as restrictive for delete to todo_app
    using (delete_time < clock_timestamp() - interval '1 day');
alter table todo_occurrence drop constraint todo_occurrence_tenant_todo_id_fkey;

-- For the next migration, which must hold no lock on `todo` for long.
create policy set_first_timers on todo for select to current_user using (true);
