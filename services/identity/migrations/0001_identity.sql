-- People, whoever their provider is. They belong to no tenant: one may be a member of several.
create table person (
    id          text collate "C" primary key check (char_length(id) between 1 and 200),
    issuer      text        not null check (char_length(issuer) between 1 and 500),
    subject     text        not null check (octet_length(subject) between 1 and 255),
    create_time timestamptz not null,
    constraint person_once unique (issuer, subject)
);

grant select, insert on person to identity_app;

-- What is known of a tenant. Its slug is never given twice: the row of an erased one stays.
create table tenant (
    tenant        text collate "C" primary key check (tenant ~ '^[a-z0-9][a-z0-9-]{0,35}$'),
    id            uuid        not null unique,
    name          text        not null check (char_length(name) between 1 and 200),
    time_zone     text        not null check (char_length(time_zone) between 1 and 64),
    country       text        not null check (country ~ '^[A-Z]{2}$'),
    currency      text        not null check (currency ~ '^[A-Z]{3}$'),
    billing_email text        not null check (char_length(billing_email) <= 254),
    create_time   timestamptz not null,
    update_time   timestamptz not null,
    delete_time   timestamptz,
    created_by    text        not null,
    version       integer     not null check (version >= 1)
);

create index tenant_signed_up_idx on tenant (create_time);

-- Members. One who left stays as a tombstone, without what is known of the person.
create table member (
    tenant      text collate "C" not null references tenant (tenant),
    id          uuid        not null,
    user_id     text collate "C" references person (id),
    name        text        not null check (char_length(name) <= 200),
    email       text        not null check (char_length(email) <= 254),
    locale      text        not null check (char_length(locale) <= 35),
    time_zone   text        not null check (char_length(time_zone) <= 64),
    role        text        not null check (role in ('owner', 'admin', 'billing', 'member', 'viewer')),
    create_time timestamptz not null,
    update_time timestamptz not null,
    delete_time timestamptz,
    version     integer     not null check (version >= 1),
    primary key (tenant, id),
    check ((user_id is null) = (delete_time is not null))
);

create index member_list_idx on member (tenant, id) where delete_time is null;
create unique index member_once on member (tenant, user_id) where delete_time is null;
create index member_user_idx on member (user_id) where delete_time is null;

-- Invitations. One that is taken up or withdrawn stays as a tombstone: an id is used once.
create table invitation (
    tenant      text collate "C" not null references tenant (tenant),
    id          uuid        not null unique,
    email       text        not null check (char_length(email) <= 254),
    role        text        not null check (role in ('owner', 'admin', 'billing', 'member', 'viewer')),
    expire_time timestamptz not null,
    create_time timestamptz not null,
    update_time timestamptz not null,
    delete_time timestamptz,
    created_by  text        not null,
    version     integer     not null check (version >= 1),
    primary key (tenant, id)
);

create index invitation_list_idx on invitation (tenant, id) where delete_time is null;

-- Programs. One that is let in no more stays as a tombstone: an id is used once.
create table service_account (
    tenant      text collate "C" not null references tenant (tenant),
    id          uuid        not null,
    name        text        not null check (char_length(name) between 1 and 200),
    role        text        not null check (role in ('admin', 'billing', 'member', 'viewer')),
    create_time timestamptz not null,
    update_time timestamptz not null,
    delete_time timestamptz,
    created_by  text        not null,
    version     integer     not null check (version >= 1),
    primary key (tenant, id)
);

create index service_account_list_idx on service_account (tenant, id) where delete_time is null;

-- Keys of programs. Of each only a digest is kept: the rest of the key has 256 bits, which nobody guesses.
create table api_key (
    tenant      text collate "C" not null references tenant (tenant),
    id          uuid        not null unique,
    service_account uuid    not null,
    name        text        not null check (char_length(name) between 1 and 200),
    scopes      text[]      not null check (cardinality(scopes) between 1 and 20),
    digest      bytea       not null check (octet_length(digest) in (0, 32)),
    expire_time timestamptz not null,
    -- When it was last exchanged, to the minute: of no version, and in no event.
    last_use_time timestamptz,
    create_time timestamptz not null,
    update_time timestamptz not null,
    delete_time timestamptz,
    created_by  text        not null,
    version     integer     not null check (version >= 1),
    primary key (tenant, id),
    foreign key (tenant, service_account) references service_account (tenant, id),
    check ((octet_length(digest) = 0) = (delete_time is not null))
);

create index api_key_list_idx on api_key (tenant, id) where delete_time is null;
create index api_key_of_idx on api_key (tenant, service_account) where delete_time is null;

-- Who did what to access, one row for each event of a command. Ids alone: they stay when a person is erased.
create table audit (
    tenant  text collate "C" not null references tenant (tenant),
    id      uuid        not null,
    time    timestamptz not null,
    actor   text        not null check (char_length(actor) between 1 and 2000),
    action  text        not null check (char_length(action) between 1 and 100),
    subject uuid        not null,
    primary key (tenant, id)
);

-- Row-level security: the tenant is a setting of the transaction, and there is no way around it for the service's role.
-- the release before goes on: it has none of this
do $$
declare
    kind text;
begin
    foreach kind in array array['tenant', 'member', 'invitation', 'service_account', 'api_key', 'audit'] loop
        execute format('alter table %I enable row level security', kind);
        execute format('alter table %I force row level security', kind);
        execute format(
            'create policy of_tenant on %I to identity_app using (tenant = current_setting(''app.tenant'', true)) '
            'with check (tenant = current_setting(''app.tenant'', true))', kind);
        execute format('grant select, insert, update on %I to identity_app', kind);
        -- The owner reads by these policies, in the functions below alone.
        execute format('create policy of_owner on %I for select to current_user using (true)', kind);
    end loop;
end $$;

-- The audit only grows, until its tenant is erased.
-- the release before goes on: it has none of this
revoke update on audit from identity_app;
grant delete on audit to identity_app;

-- Which tenants there are, one behind the other: for operators, who read each tenant's as that tenant.
create function identity_next_tenant(after_tenant text) returns text language sql stable security definer as $$
    select min(tenant) from tenant where tenant > after_tenant
$$;

-- Where a person is a member, and as what: before a tenant is chosen. Two of several say that there are several.
create function identity_memberships(of_issuer text, of_subject text, wanted text)
    returns table (tenant text, member_id uuid, user_id text, role text) language sql stable security definer as $$
    select member.tenant, member.id, person.id, member.role
    from person join member on member.user_id = person.id and member.delete_time is null
    where person.issuer = of_issuer and person.subject = of_subject and (wanted is null or member.tenant = wanted)
    order by member.tenant limit 2
$$;

-- How many tenants were signed up since then, and how many by one user.
create function identity_signed_up(since timestamptz, by_user text) returns table (everybody bigint, one bigint)
    language sql stable security definer as $$
    select count(*), count(*) filter (where created_by = by_user) from tenant where create_time > since
$$;

-- The tenant of an invitation, one that is closed too, for a repeat; and that of a key: whoever comes with one knows its id alone.
create function identity_tenant_of_invitation(of_id uuid) returns text language sql stable security definer as $$
    select tenant from invitation where id = of_id
$$;

create function identity_tenant_of_key(of_id uuid) returns text language sql stable security definer as $$
    select tenant from api_key where id = of_id and delete_time is null
$$;

-- the release before goes on: it has none of this
do $$
declare
    made text;
begin
    foreach made in array array['identity_next_tenant(text)', 'identity_memberships(text, text, text)',
        'identity_tenant_of_invitation(uuid)', 'identity_tenant_of_key(uuid)'] loop
        execute format('revoke all on function %s from public', made);
        execute format('grant execute on function %s to identity_operator', made);
        execute format('alter function %s set search_path = %I, pg_temp', made, current_schema());
    end loop;
end $$;

-- Whoever signs up asks, in a transaction of the tenant that is to be: it gets numbers alone.
revoke all on function identity_signed_up(timestamptz, text) from public;
grant execute on function identity_signed_up(timestamptz, text) to identity_app;
-- the release before goes on: it has none of this
do $$ begin
    execute format('alter function identity_signed_up(timestamptz, text) set search_path = %I, pg_temp', current_schema());
end $$;
