-- The timers of what was there before them. What was overdue already stays unannounced; the hour is for what came due meanwhile.
insert into todo_timer (tenant, kind, todo_id, time, claim_time)
select tenant, 'DUE', id, due_time, due_time from todo
where status = 'OPEN' and delete_time is null and due_time > clock_timestamp() - interval '1 hour'
on conflict do nothing;

insert into todo_timer (tenant, kind, todo_id, time, claim_time)
select tenant, 'PURGE', id, delete_time, delete_time from todo where delete_time is not null
on conflict do nothing;
