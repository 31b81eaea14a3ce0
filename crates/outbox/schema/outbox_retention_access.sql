-- A stream that is empty is filled from what was published in its time, not from what was written in it.
grant select on outbox_passed to {relay};
