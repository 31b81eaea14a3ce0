-- How far the stream of dead letters is kept, written with what is kept: a database that went back says so, and the letters
-- of since are read again.
create table kept (
    only_row          boolean primary key default true check (only_row),
    -- When the stream was created; null until the first is kept by a release that knows this table.
    stream_created_at timestamptz,
    sequence          bigint not null
);

insert into kept (sequence) select coalesce(max(dlq_sequence), 0) from death;

grant select, update on kept to operations_app;
