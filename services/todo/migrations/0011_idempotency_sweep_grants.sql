grant execute on function idempotency_sweep(integer, timestamptz) to todo_app;
