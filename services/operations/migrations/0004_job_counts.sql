-- How many items of a job are in which state, kept by the statements that move them: counting a million items ten times a second
-- was most of a core.
alter table job
    add column waiting bigint not null default 0,
    add column sent    bigint not null default 0,
    add column handled bigint not null default 0,
    add column failed  bigint not null default 0,
    add column skipped bigint not null default 0;

create function job_counts() returns trigger language plpgsql as $$
begin
    if tg_op = 'INSERT' then
        with moved as (select job, state, count(*) as n from after group by job, state)
        update job j set
            waiting = j.waiting + d.waiting, sent = j.sent + d.sent, handled = j.handled + d.handled,
            failed = j.failed + d.failed, skipped = j.skipped + d.skipped
        from (select job, coalesce(sum(n) filter (where state = 'waiting'), 0) as waiting,
                  coalesce(sum(n) filter (where state = 'sent'), 0) as sent,
                  coalesce(sum(n) filter (where state = 'handled'), 0) as handled,
                  coalesce(sum(n) filter (where state = 'failed'), 0) as failed,
                  coalesce(sum(n) filter (where state = 'skipped'), 0) as skipped
              from moved group by job) d
        where j.id = d.job;
    else
        with moved as (
            select job, state, sum(n) as n
            from (select job, state, 1 as n from after union all select job, state, -1 from before) m
            group by job, state having sum(n) <> 0
        )
        update job j set
            waiting = j.waiting + d.waiting, sent = j.sent + d.sent, handled = j.handled + d.handled,
            failed = j.failed + d.failed, skipped = j.skipped + d.skipped
        from (select job, coalesce(sum(n) filter (where state = 'waiting'), 0) as waiting,
                  coalesce(sum(n) filter (where state = 'sent'), 0) as sent,
                  coalesce(sum(n) filter (where state = 'handled'), 0) as handled,
                  coalesce(sum(n) filter (where state = 'failed'), 0) as failed,
                  coalesce(sum(n) filter (where state = 'skipped'), 0) as skipped
              from moved group by job) d
        where j.id = d.job;
    end if;
    return null;
end $$;

create trigger job_counts_inserted after insert on job_item
    referencing new table as after for each statement execute function job_counts();
create trigger job_counts_updated after update on job_item
    referencing old table as before new table as after for each statement execute function job_counts();

update job j set waiting = c.waiting, sent = c.sent, handled = c.handled, failed = c.failed, skipped = c.skipped
from (select job, count(*) filter (where state = 'waiting') as waiting, count(*) filter (where state = 'sent') as sent,
          count(*) filter (where state = 'handled') as handled, count(*) filter (where state = 'failed') as failed,
          count(*) filter (where state = 'skipped') as skipped
      from job_item group by job) c
where c.job = j.id;
