-- Vessels of all tenants. The order of ids (UUIDv7) is the order of creation, so lists page by id. A deleted one stays as a tombstone.
create table vessel (
    tenant      text collate "C" not null,
    id          uuid        not null,
    name        text        not null check (char_length(name) between 1 and 200),
    notes       text        not null check (char_length(notes) <= 10000),
    create_time timestamptz not null,
    update_time timestamptz not null,
    delete_time timestamptz,
    created_by  text        not null,
    version     integer     not null check (version >= 1),
    primary key (tenant, id)
);

-- One composite index, tenant first, for each way to list.
create index vessel_list_idx on vessel (tenant, id) where delete_time is null;
create index vessel_update_idx on vessel (tenant, update_time, id) where delete_time is null;

-- The logbook of each vessel: one, whoever would make a second finds it taken.
create table logbook (
    tenant      text collate "C" not null,
    id          uuid        not null,
    vessel_id   uuid        not null,
    notes       text        not null check (char_length(notes) <= 10000),
    create_time timestamptz not null,
    update_time timestamptz not null,
    delete_time timestamptz,
    created_by  text        not null,
    version     integer     not null check (version >= 1),
    primary key (tenant, id),
    constraint logbook_once unique (tenant, vessel_id),
    foreign key (tenant, vessel_id) references vessel (tenant, id)
);

create index logbook_list_idx on logbook (tenant, id) where delete_time is null;

-- Row-level security: the tenant is a setting of the transaction, and there is no way around it for the service's role.
alter table vessel  enable row level security;
alter table vessel  force row level security;
alter table logbook enable row level security;
alter table logbook force row level security;

create policy of_tenant on vessel to harbour_app
    using (tenant = current_setting('app.tenant', true)) with check (tenant = current_setting('app.tenant', true));
create policy of_tenant on logbook to harbour_app
    using (tenant = current_setting('app.tenant', true)) with check (tenant = current_setting('app.tenant', true));

grant select, insert, update on vessel, logbook to harbour_app;

-- Which tenants have any, one behind the other: for operators, who read each tenant's as that tenant. The owner reads by these policies,
-- in this function alone.
create policy next_tenant on vessel for select to current_user using (true);
create policy next_tenant on logbook for select to current_user using (true);

create function harbour_next_tenant(after_tenant text) returns text language sql stable security definer as $$
    select least(
        (select min(tenant) from vessel where tenant > after_tenant),
        (select min(tenant) from logbook where tenant > after_tenant)
    )
$$;
revoke all on function harbour_next_tenant(text) from public;
grant execute on function harbour_next_tenant(text) to harbour_operator;

-- the release before goes on: there is none
do $$ begin
    execute format('alter function harbour_next_tenant(text) set search_path = %I, pg_temp', current_schema());
end $$;
