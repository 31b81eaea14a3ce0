-- Who reads the stream of dead letters: one process at a time, so that what is noted is a prefix and not what one of two has had.
alter table kept
    add column holder     uuid,
    add column expires_at timestamptz not null default '-infinity';
