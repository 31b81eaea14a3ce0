-- Of no tenant: which events this service has handled, who pulls, and which events are dead.
grant select, insert, delete on inbox to todo_app;
grant select, insert, update on inbox_lease to todo_app;
grant select, insert, update, delete on inbox_dead to todo_app;
