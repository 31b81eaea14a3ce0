-- A suspended tenant reads, and writes nothing.
-- the release before goes on: what it inserts is active
alter table tenant add column status text not null default 'active' check (status in ('active', 'suspended'));
