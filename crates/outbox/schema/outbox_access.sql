-- Who may what: writers append their own tenant's events and are told the number and time of them; the relay reads all.
alter table outbox enable row level security;
alter table outbox force row level security;

create policy of_tenant on outbox for insert to {app}
    with check (tenant = current_setting('app.tenant', true));
create policy of_tenant_again on outbox for select to {app}
    using (tenant = current_setting('app.tenant', true));
create policy relay on outbox for select to {relay} using (true);

grant insert, select (seq, created_at) on outbox to {app};
grant usage on sequence outbox_seq to {app};

grant select on outbox, outbox_seq to {relay};
grant select, update on outbox_relay to {relay};
grant select, insert, update on outbox_parked to {relay};
grant execute on function outbox_create_partitions(integer) to {relay};
