-- Forgets up to `at_most` answers that are older than a day, of all tenants, those made at or behind `from_time` only; how many
-- it forgot, and when the last of them was made. The one without a beginning stays for releases that run still.
create function idempotency_sweep(at_most integer, from_time timestamptz, out swept bigint, out up_to timestamptz)
    language sql security definer set search_path from current as $$
    with old as (
        select tenant, principal, method, key from idempotency
        where created_at >= coalesce(from_time, '-infinity') and created_at < clock_timestamp() - interval '24 hours'
        order by created_at limit at_most for update skip locked
    ), gone as (
        delete from idempotency using old
        where (idempotency.tenant, idempotency.principal, idempotency.method, idempotency.key)
            = (old.tenant, old.principal, old.method, old.key)
        returning idempotency.created_at
    )
    select count(*), max(created_at) from gone
$$;

revoke all on function idempotency_sweep(integer, timestamptz) from public;

do $$ begin
    execute format('alter function idempotency_sweep(integer, timestamptz) set search_path = %I, pg_temp', current_schema());
end $$;
