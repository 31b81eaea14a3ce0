-- What this service knows of tenants that were suspended, resumed or erased, by identity's events. An id is never given twice, so a row stays.
create table known_tenant (
    tenant  text collate "C" primary key,
    status  text        not null check (status in ('active', 'suspended', 'erased')),
    -- When identity changed it so: what is older changes nothing. (Its version would not do: a restored identity counts anew.)
    time    timestamptz not null
);

alter table known_tenant enable row level security;
alter table known_tenant force row level security;

create policy of_tenant on known_tenant to {app}
    using (tenant = current_setting('app.tenant', true)) with check (tenant = current_setting('app.tenant', true));

grant select, insert, update on known_tenant to {app};
