-- The event that an item of a range names, by its id: a stream that was restored gives its place to another one.
alter table job_item add column event_id text;
