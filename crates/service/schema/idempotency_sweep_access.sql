-- What is asked of all tenants at once is asked in a role of its own, which sees no tenant's rows: `db.begin_operator`.
grant execute on function idempotency_sweep(integer, timestamptz) to {app}, {operator};
