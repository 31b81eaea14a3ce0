-- Writers hand what they append to the relay: they are told the number and the time of it, and of nothing but their tenant's.
create policy of_tenant_again on outbox for select to todo_app
    using (tenant = current_setting('app.tenant', true));
grant select (seq, created_at) on outbox to todo_app;
