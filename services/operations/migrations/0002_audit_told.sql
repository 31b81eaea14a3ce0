-- Which lines of the audit are in the stream AUDIT as well. Should that be lost, emptying this tells all of them again.
create table audit_told (
    id bigint primary key references audit
);

grant select, insert on audit_told to operations_app;

-- What a job sends next.
create index job_item_waiting_idx on job_item (job, n) where state = 'waiting';
