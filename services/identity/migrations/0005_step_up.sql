-- What a tenant demands of a person's sign-in before some acts (RFC 9470): acts, acr_values, max_age.
-- the release before goes on: it neither reads nor writes it, and its tokens demand nothing
alter table tenant add column step_up jsonb check (step_up is null or coalesce(
    jsonb_typeof(step_up) = 'object'
    and jsonb_typeof(step_up -> 'acts') = 'array' and jsonb_array_length(step_up -> 'acts') between 1 and 30
    and jsonb_typeof(step_up -> 'acr_values') = 'array' and jsonb_array_length(step_up -> 'acr_values') <= 5
    and case jsonb_typeof(step_up -> 'max_age')
        when 'number' then (step_up ->> 'max_age')::numeric between 60 and 86400
        when 'null' then jsonb_array_length(step_up -> 'acr_values') > 0
    end,
    false
));
