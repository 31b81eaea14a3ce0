-- Each tenant's answers are its own; the sweep runs as the owner, of all tenants.
alter table idempotency enable row level security;
alter table idempotency force row level security;

create policy of_tenant on idempotency to {app}
    using (tenant = current_setting('app.tenant', true)) with check (tenant = current_setting('app.tenant', true));
create policy sweep on idempotency to current_user using (true);

grant select, insert on idempotency to {app};
grant execute on function idempotency_sweep(integer) to {app};
