drop policy set_first_timers on todo;
