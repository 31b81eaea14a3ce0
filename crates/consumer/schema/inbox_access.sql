-- Of no tenant: which events were handled, who pulls, and which events are dead.
grant select, insert, delete on inbox to {app};
grant select, insert, update on inbox_lease to {app};
grant select, insert, update, delete on inbox_dead to {app};
