-- That the tenants which other services knew before are adopted: until then nobody signs up, or a stranger would own them.
create table adoption (
    done boolean primary key check (done),
    time timestamptz not null
);

grant select on adoption to identity_app;

-- Operators note it, of no tenant, and ask for it.
create function identity_note_adoption(at timestamptz) returns void language sql security definer as $$
    insert into adoption (done, time) values (true, at) on conflict do nothing
$$;

create function identity_is_adopted() returns boolean language sql stable security definer as $$
    select exists (select from adoption)
$$;

-- Whether it was adopted: nobody signed it up.
-- the release before goes on: what it inserts was signed up
alter table tenant add column adopted boolean not null default false;

-- The user that a person is; none of one who was never seen. Asked before a tenant is chosen.
create function identity_user(of_issuer text, of_subject text) returns text language sql stable security definer as $$
    select id from person where issuer = of_issuer and subject = of_subject
$$;

-- the release before goes on: it has none of this
do $$
declare
    made text;
begin
    foreach made in array array['identity_user(text, text)', 'identity_note_adoption(timestamptz)', 'identity_is_adopted()'] loop
        execute format('revoke all on function %s from public', made);
        execute format('grant execute on function %s to identity_operator', made);
        execute format('alter function %s set search_path = %I, pg_temp', made, current_schema());
    end loop;
end $$;

-- the release before goes on: the numbers are those of what was signed up, as before
create or replace function identity_signed_up(since timestamptz, by_user text) returns table (everybody bigint, one bigint)
    language sql stable security definer as $$
    select count(*), count(*) filter (where created_by = by_user) from tenant where create_time > since and not adopted
$$;

-- the release before goes on: replaced above, which forgets it
do $$ begin
    execute format('alter function identity_signed_up(timestamptz, text) set search_path = %I, pg_temp', current_schema());
end $$;
