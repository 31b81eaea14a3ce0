-- Which tenants have todos, one behind the other: for operators, who read each tenant's todos as that tenant.
create function todo_next_tenant(after_tenant text) returns text language sql stable security definer as $$
    select min(tenant) from todo where tenant > after_tenant
$$;
revoke all on function todo_next_tenant(text) from public;
grant execute on function todo_next_tenant(text) to todo_operator;
-- the release before goes on: the owner reads by it, in this function alone
create policy next_tenant on todo for select to current_user using (true);
-- the release before goes on: it does not know the function
do $$ begin
    execute format('alter function todo_next_tenant(text) set search_path = %I, pg_temp', current_schema());
end $$;
