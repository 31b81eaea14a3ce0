-- Answers to commands that carried an idempotency key, kept in the transaction of the command itself.
create table idempotency (
    tenant      text        not null,
    principal   text        not null,
    method      text        not null,
    key         text        not null,
    fingerprint bytea       not null,
    response    bytea       not null,
    created_at  timestamptz not null default clock_timestamp(),
    primary key (tenant, principal, method, key)
);

create index idempotency_created_at_idx on idempotency (created_at);

-- Forgets up to `at_most` answers that are older than a day, of all tenants; how many it forgot.
create function idempotency_sweep(at_most integer) returns bigint
    language sql security definer set search_path from current as $$
    with old as (
        select tenant, principal, method, key from idempotency
        where created_at < clock_timestamp() - interval '24 hours' limit at_most for update skip locked
    ), gone as (
        delete from idempotency using old
        where (idempotency.tenant, idempotency.principal, idempotency.method, idempotency.key)
            = (old.tenant, old.principal, old.method, old.key)
        returning 1
    )
    select count(*) from gone
$$;

revoke all on function idempotency_sweep(integer) from public;
