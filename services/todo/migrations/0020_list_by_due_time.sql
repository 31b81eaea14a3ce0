-- no-transaction
create index concurrently if not exists todo_due_idx on todo (tenant, (case when due_time is null then 'infinity'::timestamptz else due_time end), id) where delete_time is null;
