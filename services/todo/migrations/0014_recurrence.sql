-- How a todo recurs, and which one of its series it is. A release that does not know these columns leaves them as they are.
alter table todo
    add column recurrence_rule      text,
    add column recurrence_zone      text,
    add column recurrence_basis     text,
    add column recurrence_wall_time timestamp,
    add column series_id            uuid,
    add column occurrence           integer;

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
