-- Which users are members of a tenant, by identity's events. Nothing else of a person stands here.
create table known_member (
    tenant   text collate "C" not null,
    -- The member. A user who comes again is another one.
    id       uuid        not null,
    -- The user, as tokens name it; null of one who has left. The row stays, so that an older event does not bring the member back.
    user_id  text collate "C",
    -- When identity changed it so: what is older changes nothing.
    time     timestamptz not null,
    primary key (tenant, id)
);

create index known_member_user on known_member (tenant, user_id) where user_id is not null;

alter table known_member enable row level security;
alter table known_member force row level security;

create policy of_tenant on known_member to {app}
    using (tenant = current_setting('app.tenant', true)) with check (tenant = current_setting('app.tenant', true));

grant select, insert, update on known_member to {app};
