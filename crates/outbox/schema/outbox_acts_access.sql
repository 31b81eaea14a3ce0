-- Operators act through the service's process, in the relay's role: writers have no part in it.
-- the release before goes on: the policy and the grants add to what the relay may do
create policy acts on outbox for insert to {relay} with check (true);
-- the release before goes on: as above
create policy acts_again on outbox for delete to {relay} using (true);
grant insert, delete on outbox to {relay};
grant usage, update on sequence outbox_seq to {relay};
