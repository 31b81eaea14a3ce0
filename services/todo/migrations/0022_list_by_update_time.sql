-- no-transaction
create index concurrently if not exists todo_update_idx on todo (tenant, update_time, id) where delete_time is null;
