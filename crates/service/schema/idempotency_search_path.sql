-- What runs as the owner looks among a caller's temporary tables last of all: else the caller chooses what it works on.
do $$ begin
    execute format('alter function idempotency_sweep(integer) set search_path = %I, pg_temp', current_schema());
    -- No role of the service needs temporary tables. (A database made elsewhere lets everybody have them.)
    execute format('revoke temporary on database %I from public', current_database());
end $$;
