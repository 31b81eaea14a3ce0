-- Groups of members. One that is deleted stays as a tombstone: an id is used once.
create table member_group (
    tenant      text collate "C" not null references tenant (tenant),
    id          uuid        not null,
    name        text        not null check (char_length(name) between 1 and 200),
    -- Whoever adds or removes a member holds the tenant's row, so that those who are named here are there.
    members     uuid[]      not null check (cardinality(members) <= 200),
    create_time timestamptz not null,
    update_time timestamptz not null,
    delete_time timestamptz,
    created_by  text        not null,
    version     integer     not null check (version >= 1),
    primary key (tenant, id)
);

create index member_group_list_idx on member_group (tenant, id) where delete_time is null;

-- the release before goes on: it has none of this
do $$ begin
    alter table member_group enable row level security;
    alter table member_group force row level security;
    create policy of_tenant on member_group to identity_app
        using (tenant = current_setting('app.tenant', true)) with check (tenant = current_setting('app.tenant', true));
    grant select, insert, update on member_group to identity_app;
end $$;
