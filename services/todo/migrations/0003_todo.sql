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
alter table todo        enable row level security;
alter table todo        force row level security;
alter table todo_label  enable row level security;
alter table todo_label  force row level security;
alter table idempotency enable row level security;
alter table idempotency force row level security;
alter table outbox      enable row level security;
alter table outbox      force row level security;

create policy of_tenant on todo to todo_app
    using (tenant = current_setting('app.tenant', true)) with check (tenant = current_setting('app.tenant', true));
create policy of_tenant on todo_label to todo_app
    using (tenant = current_setting('app.tenant', true)) with check (tenant = current_setting('app.tenant', true));
create policy of_tenant on idempotency to todo_app
    using (tenant = current_setting('app.tenant', true)) with check (tenant = current_setting('app.tenant', true));
create policy of_tenant on outbox for insert to todo_app
    with check (tenant = current_setting('app.tenant', true));
-- The sweep runs as the owner, of all tenants; the relay reads all tenants' events, and nothing else.
create policy sweep on idempotency to current_user using (true);
create policy relay on outbox for select to todo_relay using (true);

grant select, insert, update on todo to todo_app;
grant select, insert, delete on todo_label to todo_app;
grant select, insert on idempotency to todo_app;
grant execute on function idempotency_sweep(integer) to todo_app;
grant insert on outbox to todo_app;
grant usage on sequence outbox_seq to todo_app;

grant select on outbox, outbox_seq to todo_relay;
grant select, update on outbox_relay to todo_relay;
grant select, insert, update on outbox_parked to todo_relay;
grant execute on function outbox_create_partitions(integer) to todo_relay;
