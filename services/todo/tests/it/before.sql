-- A database of todo as the release before recurring todos left it (its migrations 0001 to 0011), with some rows: pg_dump --no-owner --inserts.
SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;
-- Name: idempotency_sweep(integer); Type: FUNCTION; Schema: public; Owner: -
CREATE FUNCTION public.idempotency_sweep(at_most integer) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $$
    with old as (
        select tenant, principal, method, key from idempotency
        where created_at < clock_timestamp() - interval '24 hours' limit at_most for update skip locked
    ), gone as (
        delete from idempotency using old
        where (idempotency.tenant, idempotency.principal, idempotency.method, idempotency.key)
            = (old.tenant, old.principal, old.method, old.key)
        returning 1
    )
    select count(*) from gone
$$;
-- Name: idempotency_sweep(integer, timestamp with time zone); Type: FUNCTION; Schema: public; Owner: -
CREATE FUNCTION public.idempotency_sweep(at_most integer, from_time timestamp with time zone, OUT swept bigint, OUT up_to timestamp with time zone) RETURNS record
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $$
    with old as (
        select tenant, principal, method, key from idempotency
        where created_at >= coalesce(from_time, '-infinity') and created_at < clock_timestamp() - interval '24 hours'
        order by created_at limit at_most for update skip locked
    ), gone as (
        delete from idempotency using old
        where (idempotency.tenant, idempotency.principal, idempotency.method, idempotency.key)
            = (old.tenant, old.principal, old.method, old.key)
        returning idempotency.created_at
    )
    select count(*), max(created_at) from gone
$$;
-- Name: outbox_create_partitions(integer); Type: FUNCTION; Schema: public; Owner: -
CREATE FUNCTION public.outbox_create_partitions(days_ahead integer) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $$
declare
    first date := (clock_timestamp() at time zone 'UTC')::date;
    day   date;
    part  text;
    made  integer := 0;
begin
    perform pg_advisory_xact_lock(hashtextextended('outbox_create_partitions', 0));
    for day in select generate_series(first, first + days_ahead, interval '1 day')::date loop
        part := 'outbox_' || to_char(day, 'YYYYMMDD');
        if to_regclass(part) is null then
            execute format('create table %I (like outbox including all)', part);
            execute format('alter table outbox attach partition %I for values from (%L) to (%L)',
                part, day::text || ' 00:00:00+00', (day + 1)::text || ' 00:00:00+00');
            made := made + 1;
        end if;
    end loop;
    return made;
end $$;
-- Name: outbox_drop_partitions(integer); Type: FUNCTION; Schema: public; Owner: -
CREATE FUNCTION public.outbox_drop_partitions(keep_days integer) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    SET lock_timeout TO '100ms'
    AS $_$
declare
    part    record;
    newest  bigint;
    stored  bigint;
    today   date := (clock_timestamp() at time zone 'UTC')::date;
    may     boolean := true;
    dropped integer := 0;
begin
    if keep_days < 1 then
        raise exception 'an outbox keeps its rows for a day at least';
    end if;
    for part in
        select c.relname as name, to_date(right(c.relname, 8), 'YYYYMMDD') as day
        from pg_inherits i join pg_class c on c.oid = i.inhrelid
        -- Partitions that somebody has attached under names of their own are theirs to drop.
        where i.inhparent = 'outbox'::regclass and c.relname ~ '^outbox_[0-9]{8}$'
        order by 2
    loop
        exit when part.day >= today;
        select outbox_seq into stored from outbox_relay;
        execute format('select coalesce(max(seq), 0) from %I', part.name) into newest;
        -- An empty day may go; else it must be safely stored, with a newer row known to be so.
        exit when newest > 0 and newest >= stored;
        insert into outbox_passed (day) values (part.day) on conflict do nothing;
        may := may and part.day + 1 + keep_days <= today
            and (select at from outbox_passed where day = part.day) < clock_timestamp() - make_interval(days => keep_days);
        -- Later days are still looked at, for when they were stored.
        continue when not may;
        lock table outbox in access exclusive mode;
        execute format('select coalesce(max(seq), 0) from %I', part.name) into newest;
        exit when newest > 0 and newest >= stored;
        exit when exists (select from outbox_parked where state = 'parked'
            and created_at >= part.day::timestamp at time zone 'UTC'
            and created_at < (part.day + 1)::timestamp at time zone 'UTC');
        execute format('alter table outbox detach partition %I', part.name);
        execute format('drop table %I', part.name);
        update outbox_relay set dropped_seq = greatest(dropped_seq, newest);
        delete from outbox_parked where state <> 'parked' and created_at >= part.day::timestamp at time zone 'UTC'
            and created_at < (part.day + 1)::timestamp at time zone 'UTC';
        delete from outbox_passed where day = part.day;
        insert into outbox_journal (kind, actor, to_seq, detail)
            values ('dropped', 'retention', newest, 'the partition of ' || part.day);
        dropped := dropped + 1;
    end loop;
    return dropped;
end $_$;
SET default_tablespace = '';
SET default_table_access_method = heap;
-- Name: _sqlx_migrations; Type: TABLE; Schema: public; Owner: -
CREATE TABLE public._sqlx_migrations (
    version bigint NOT NULL,
    description text NOT NULL,
    installed_on timestamp with time zone DEFAULT now() NOT NULL,
    success boolean NOT NULL,
    checksum bytea NOT NULL,
    execution_time bigint NOT NULL
);
-- Name: idempotency; Type: TABLE; Schema: public; Owner: -
CREATE TABLE public.idempotency (
    tenant text NOT NULL,
    principal text NOT NULL,
    method text NOT NULL,
    key text NOT NULL,
    fingerprint bytea NOT NULL,
    response bytea NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);
ALTER TABLE ONLY public.idempotency FORCE ROW LEVEL SECURITY;
-- Name: outbox_seq; Type: SEQUENCE; Schema: public; Owner: -
CREATE SEQUENCE public.outbox_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
-- Name: outbox; Type: TABLE; Schema: public; Owner: -
CREATE TABLE public.outbox (
    seq bigint DEFAULT nextval('public.outbox_seq'::regclass) NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    event_id uuid NOT NULL,
    tenant text NOT NULL,
    aggregate_id text NOT NULL,
    subject text NOT NULL,
    traceparent text,
    payload bytea NOT NULL
)
PARTITION BY RANGE (created_at);
ALTER TABLE ONLY public.outbox FORCE ROW LEVEL SECURITY;
-- Name: outbox_20261127; Type: TABLE; Schema: public; Owner: -
CREATE TABLE public.outbox_20261127 (
    seq bigint DEFAULT nextval('public.outbox_seq'::regclass) NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    event_id uuid NOT NULL,
    tenant text NOT NULL,
    aggregate_id text NOT NULL,
    subject text NOT NULL,
    traceparent text,
    payload bytea NOT NULL
);
-- Name: outbox_20261128; Type: TABLE; Schema: public; Owner: -
CREATE TABLE public.outbox_20261128 (
    seq bigint DEFAULT nextval('public.outbox_seq'::regclass) NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    event_id uuid NOT NULL,
    tenant text NOT NULL,
    aggregate_id text NOT NULL,
    subject text NOT NULL,
    traceparent text,
    payload bytea NOT NULL
);
-- Name: outbox_20261129; Type: TABLE; Schema: public; Owner: -
CREATE TABLE public.outbox_20261129 (
    seq bigint DEFAULT nextval('public.outbox_seq'::regclass) NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    event_id uuid NOT NULL,
    tenant text NOT NULL,
    aggregate_id text NOT NULL,
    subject text NOT NULL,
    traceparent text,
    payload bytea NOT NULL
);
-- Name: outbox_20261130; Type: TABLE; Schema: public; Owner: -
CREATE TABLE public.outbox_20261130 (
    seq bigint DEFAULT nextval('public.outbox_seq'::regclass) NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    event_id uuid NOT NULL,
    tenant text NOT NULL,
    aggregate_id text NOT NULL,
    subject text NOT NULL,
    traceparent text,
    payload bytea NOT NULL
);
-- Name: outbox_20261201; Type: TABLE; Schema: public; Owner: -
CREATE TABLE public.outbox_20261201 (
    seq bigint DEFAULT nextval('public.outbox_seq'::regclass) NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    event_id uuid NOT NULL,
    tenant text NOT NULL,
    aggregate_id text NOT NULL,
    subject text NOT NULL,
    traceparent text,
    payload bytea NOT NULL
);
-- Name: outbox_20261202; Type: TABLE; Schema: public; Owner: -
CREATE TABLE public.outbox_20261202 (
    seq bigint DEFAULT nextval('public.outbox_seq'::regclass) NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    event_id uuid NOT NULL,
    tenant text NOT NULL,
    aggregate_id text NOT NULL,
    subject text NOT NULL,
    traceparent text,
    payload bytea NOT NULL
);
-- Name: outbox_20261203; Type: TABLE; Schema: public; Owner: -
CREATE TABLE public.outbox_20261203 (
    seq bigint DEFAULT nextval('public.outbox_seq'::regclass) NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    event_id uuid NOT NULL,
    tenant text NOT NULL,
    aggregate_id text NOT NULL,
    subject text NOT NULL,
    traceparent text,
    payload bytea NOT NULL
);
-- Name: outbox_20261204; Type: TABLE; Schema: public; Owner: -
CREATE TABLE public.outbox_20261204 (
    seq bigint DEFAULT nextval('public.outbox_seq'::regclass) NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    event_id uuid NOT NULL,
    tenant text NOT NULL,
    aggregate_id text NOT NULL,
    subject text NOT NULL,
    traceparent text,
    payload bytea NOT NULL
);
-- Name: outbox_20261205; Type: TABLE; Schema: public; Owner: -
CREATE TABLE public.outbox_20261205 (
    seq bigint DEFAULT nextval('public.outbox_seq'::regclass) NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    event_id uuid NOT NULL,
    tenant text NOT NULL,
    aggregate_id text NOT NULL,
    subject text NOT NULL,
    traceparent text,
    payload bytea NOT NULL
);
-- Name: outbox_journal; Type: TABLE; Schema: public; Owner: -
CREATE TABLE public.outbox_journal (
    id bigint NOT NULL,
    at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    kind text NOT NULL,
    actor text NOT NULL,
    from_seq bigint,
    to_seq bigint,
    detail text NOT NULL,
    CONSTRAINT outbox_journal_kind_check CHECK ((kind = ANY (ARRAY['refill'::text, 'missing'::text, 'halted'::text, 'resumed'::text, 'parked'::text, 'released'::text, 'discarded'::text, 'accepted'::text, 'dropped'::text])))
);
-- Name: outbox_journal_id_seq; Type: SEQUENCE; Schema: public; Owner: -
ALTER TABLE public.outbox_journal ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.outbox_journal_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
-- Name: outbox_parked; Type: TABLE; Schema: public; Owner: -
CREATE TABLE public.outbox_parked (
    seq bigint NOT NULL,
    created_at timestamp with time zone NOT NULL,
    event_id uuid NOT NULL,
    tenant text NOT NULL,
    aggregate_id text NOT NULL,
    subject text NOT NULL,
    reason text NOT NULL,
    epoch bigint NOT NULL,
    parked_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    state text DEFAULT 'parked'::text NOT NULL,
    CONSTRAINT outbox_parked_state_check CHECK ((state = ANY (ARRAY['parked'::text, 'released'::text, 'discarded'::text])))
);
-- Name: outbox_passed; Type: TABLE; Schema: public; Owner: -
CREATE TABLE public.outbox_passed (
    day date NOT NULL,
    at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);
-- Name: outbox_relay; Type: TABLE; Schema: public; Owner: -
CREATE TABLE public.outbox_relay (
    only_row boolean DEFAULT true NOT NULL,
    holder uuid,
    epoch bigint DEFAULT 0 NOT NULL,
    expires_at timestamp with time zone DEFAULT '-infinity'::timestamp with time zone NOT NULL,
    outbox_seq bigint DEFAULT 0 NOT NULL,
    outbox_created_at timestamp with time zone,
    stream_seq bigint DEFAULT 0 NOT NULL,
    stream_created_at timestamp with time zone,
    checkpoint_at timestamp with time zone,
    dropped_seq bigint DEFAULT 0 NOT NULL,
    accepted_stream_seq bigint,
    accepted_stream_created_at timestamp with time zone,
    accepted_outbox_seq bigint,
    CONSTRAINT outbox_relay_only_row_check CHECK (only_row)
)
WITH (fillfactor='50');
-- Name: todo; Type: TABLE; Schema: public; Owner: -
CREATE TABLE public.todo (
    tenant text NOT NULL,
    id uuid NOT NULL,
    title text NOT NULL,
    notes text NOT NULL,
    status text NOT NULL,
    due_time timestamp with time zone,
    labels text[] NOT NULL,
    assignee text,
    create_time timestamp with time zone NOT NULL,
    update_time timestamp with time zone NOT NULL,
    complete_time timestamp with time zone,
    delete_time timestamp with time zone,
    created_by text NOT NULL,
    version integer NOT NULL,
    CONSTRAINT todo_completed_has_a_time CHECK (((status = 'COMPLETED'::text) = (complete_time IS NOT NULL))),
    CONSTRAINT todo_labels_check CHECK ((cardinality(labels) <= 20)),
    CONSTRAINT todo_notes_check CHECK ((char_length(notes) <= 10000)),
    CONSTRAINT todo_status_check CHECK ((status = ANY (ARRAY['OPEN'::text, 'COMPLETED'::text]))),
    CONSTRAINT todo_title_check CHECK (((char_length(title) >= 1) AND (char_length(title) <= 500))),
    CONSTRAINT todo_version_check CHECK ((version >= 1))
);
ALTER TABLE ONLY public.todo FORCE ROW LEVEL SECURITY;
-- Name: todo_label; Type: TABLE; Schema: public; Owner: -
CREATE TABLE public.todo_label (
    tenant text NOT NULL,
    label text NOT NULL,
    todo_id uuid NOT NULL
);
ALTER TABLE ONLY public.todo_label FORCE ROW LEVEL SECURITY;
-- Name: outbox_20261127; Type: TABLE ATTACH; Schema: public; Owner: -
ALTER TABLE ONLY public.outbox ATTACH PARTITION public.outbox_20261127 FOR VALUES FROM ('2026-11-27 00:00:00+00') TO ('2026-11-28 00:00:00+00');
-- Name: outbox_20261128; Type: TABLE ATTACH; Schema: public; Owner: -
ALTER TABLE ONLY public.outbox ATTACH PARTITION public.outbox_20261128 FOR VALUES FROM ('2026-11-28 00:00:00+00') TO ('2026-11-29 00:00:00+00');
-- Name: outbox_20261129; Type: TABLE ATTACH; Schema: public; Owner: -
ALTER TABLE ONLY public.outbox ATTACH PARTITION public.outbox_20261129 FOR VALUES FROM ('2026-11-29 00:00:00+00') TO ('2026-11-30 00:00:00+00');
-- Name: outbox_20261130; Type: TABLE ATTACH; Schema: public; Owner: -
ALTER TABLE ONLY public.outbox ATTACH PARTITION public.outbox_20261130 FOR VALUES FROM ('2026-11-30 00:00:00+00') TO ('2026-12-01 00:00:00+00');
-- Name: outbox_20261201; Type: TABLE ATTACH; Schema: public; Owner: -
ALTER TABLE ONLY public.outbox ATTACH PARTITION public.outbox_20261201 FOR VALUES FROM ('2026-12-01 00:00:00+00') TO ('2026-12-02 00:00:00+00');
-- Name: outbox_20261202; Type: TABLE ATTACH; Schema: public; Owner: -
ALTER TABLE ONLY public.outbox ATTACH PARTITION public.outbox_20261202 FOR VALUES FROM ('2026-12-02 00:00:00+00') TO ('2026-12-03 00:00:00+00');
-- Name: outbox_20261203; Type: TABLE ATTACH; Schema: public; Owner: -
ALTER TABLE ONLY public.outbox ATTACH PARTITION public.outbox_20261203 FOR VALUES FROM ('2026-12-03 00:00:00+00') TO ('2026-12-04 00:00:00+00');
-- Name: outbox_20261204; Type: TABLE ATTACH; Schema: public; Owner: -
ALTER TABLE ONLY public.outbox ATTACH PARTITION public.outbox_20261204 FOR VALUES FROM ('2026-12-04 00:00:00+00') TO ('2026-12-05 00:00:00+00');
-- Name: outbox_20261205; Type: TABLE ATTACH; Schema: public; Owner: -
ALTER TABLE ONLY public.outbox ATTACH PARTITION public.outbox_20261205 FOR VALUES FROM ('2026-12-05 00:00:00+00') TO ('2026-12-06 00:00:00+00');
-- Data for Name: _sqlx_migrations; Type: TABLE DATA; Schema: public; Owner: -
INSERT INTO public._sqlx_migrations VALUES (1, 'outbox', '2026-11-27 04:50:37.95514+00', true, '\x978488c436735b51593190e09b2bec8a4b101411791bbd606d4d37db7f6f3cf1f9e85bba2b2d66162961b2750df30bf0', 1);
INSERT INTO public._sqlx_migrations VALUES (2, 'idempotency', '2026-11-27 04:50:38.024185+00', true, '\x22b20749a30e4ec2b269d7b91fce1414e927fa7ba259ca3a41c9453e94ec8f5403e206da3e7cba27ed893108eb4d5c1b', 1);
INSERT INTO public._sqlx_migrations VALUES (3, 'todo', '2026-11-27 04:50:38.096842+00', true, '\x0e2622cf6063b44f312e48c6b4f84407e4694f4771ab646122924233694b3524601003907559fd1e15d95d03e7b2f121', 1);
INSERT INTO public._sqlx_migrations VALUES (4, 'outbox operations', '2026-11-27 04:50:38.164101+00', true, '\x98883af23240520c21cdf110e379b0c0cd97c5ed909f10141eebe77c940d268fc6a3a8a052fc7d51a9ddad9251712b4a', 1);
INSERT INTO public._sqlx_migrations VALUES (5, 'outbox operations grants', '2026-11-27 04:50:38.227225+00', true, '\x8e61f8a9c566d3fa220f629d6045b7f2ef9fd74ea09c46eaa6bd07f6f8afa062976623269f0b2274cdaaf34bdf353a2d', 1);
INSERT INTO public._sqlx_migrations VALUES (6, 'outbox returning', '2026-11-27 04:50:38.292036+00', true, '\xd0a4939355f20adddb22b90762266c91d0998935394018a4be3c98b0137978bd569856c7b902ecd5e88ed27bcf3af522', 1);
INSERT INTO public._sqlx_migrations VALUES (7, 'definer search path', '2026-11-27 04:50:38.360337+00', true, '\x7628ca5c67903bb875701f915c467e1999f759ff697b03297df6508e536fa3d3d11f25cf286b5245462be296a0d2bb80', 1);
INSERT INTO public._sqlx_migrations VALUES (8, 'outbox retention', '2026-11-27 04:50:38.432067+00', true, '\x9ef27cb1d5a63b92724a1da955948acce1dddd36ddf39ebd16df5db08e28f6755a30287dc4051846f7628ecca0525744', 1);
INSERT INTO public._sqlx_migrations VALUES (9, 'outbox retention grants', '2026-11-27 04:50:38.508326+00', true, '\x20fc5677b7b50bd53bd06322c7994e6036352253ba6692e063cde165eee90ea887a93b3b359e3c4574148f7b033ac82f', 1);
INSERT INTO public._sqlx_migrations VALUES (10, 'idempotency sweep', '2026-11-27 04:50:38.584287+00', true, '\x77dfd86d0bcef00b6b45c27d0be1cc3540f6fc5b01f03622c0b186c13848b54f3844c3ae3fc39a4020033c1dae2a4721', 1);
INSERT INTO public._sqlx_migrations VALUES (11, 'idempotency sweep grants', '2026-11-27 04:50:38.665803+00', true, '\x5959d57ffe101d76c07d62047d7bf2561b741cdc7b6a472cabda3b2582fdc9763d2e2b1cc903b6e8d0c7a4a0c1961a54', 1);
-- Data for Name: idempotency; Type: TABLE DATA; Schema: public; Owner: -
INSERT INTO public.idempotency VALUES ('acme', 'ann', 'CreateTodo', 'key-1', '\x00', '\x00', '2026-11-27 04:50:38.706937+00');
-- Data for Name: outbox_20261127; Type: TABLE DATA; Schema: public; Owner: -
INSERT INTO public.outbox_20261127 VALUES (1, '2026-11-27 04:50:38.706504+00', '0193a5b0-7a60-7000-8000-000000000001', 'acme', '0193a5b0-7a52-7c3e-9b1e-000000000001', 'evt.todo.updated.v1.acme', NULL, '\x7b7d');
INSERT INTO public.outbox_20261127 VALUES (2, '2026-11-27 04:50:38.706657+00', '0193a5b0-7a60-7000-8000-000000000002', 'globex', '0193a5b0-7a52-7c3e-9b1e-000000000002', 'evt.todo.completed.v1.globex', NULL, '\x7b7d');
-- Data for Name: outbox_20261128; Type: TABLE DATA; Schema: public; Owner: -
-- Data for Name: outbox_20261129; Type: TABLE DATA; Schema: public; Owner: -
-- Data for Name: outbox_20261130; Type: TABLE DATA; Schema: public; Owner: -
-- Data for Name: outbox_20261201; Type: TABLE DATA; Schema: public; Owner: -
-- Data for Name: outbox_20261202; Type: TABLE DATA; Schema: public; Owner: -
-- Data for Name: outbox_20261203; Type: TABLE DATA; Schema: public; Owner: -
-- Data for Name: outbox_20261204; Type: TABLE DATA; Schema: public; Owner: -
-- Data for Name: outbox_20261205; Type: TABLE DATA; Schema: public; Owner: -
-- Data for Name: outbox_journal; Type: TABLE DATA; Schema: public; Owner: -
-- Data for Name: outbox_parked; Type: TABLE DATA; Schema: public; Owner: -
-- Data for Name: outbox_passed; Type: TABLE DATA; Schema: public; Owner: -
-- Data for Name: outbox_relay; Type: TABLE DATA; Schema: public; Owner: -
INSERT INTO public.outbox_relay VALUES (true, NULL, 0, '-infinity', 0, NULL, 0, NULL, NULL, 0, NULL, NULL, NULL);
-- Data for Name: todo; Type: TABLE DATA; Schema: public; Owner: -
INSERT INTO public.todo VALUES ('acme', '0193a5b0-7a52-7c3e-9b1e-000000000001', 'of before', 'kept', 'OPEN', '2026-11-01 09:00:00+00', '{rope}', 'bob', '2026-10-01 08:00:00+00', '2026-10-02 08:00:00+00', NULL, NULL, 'ann', 2);
INSERT INTO public.todo VALUES ('globex', '0193a5b0-7a52-7c3e-9b1e-000000000002', 'of another tenant', '', 'COMPLETED', NULL, '{}', NULL, '2026-10-01 08:00:00+00', '2026-10-01 09:00:00+00', '2026-10-01 09:00:00+00', NULL, 'eve', 2);
-- Data for Name: todo_label; Type: TABLE DATA; Schema: public; Owner: -
INSERT INTO public.todo_label VALUES ('acme', 'rope', '0193a5b0-7a52-7c3e-9b1e-000000000001');
-- Name: outbox_journal_id_seq; Type: SEQUENCE SET; Schema: public; Owner: -
SELECT pg_catalog.setval('public.outbox_journal_id_seq', 1, false);
-- Name: outbox_seq; Type: SEQUENCE SET; Schema: public; Owner: -
SELECT pg_catalog.setval('public.outbox_seq', 2, true);
-- Name: _sqlx_migrations _sqlx_migrations_pkey; Type: CONSTRAINT; Schema: public; Owner: -
ALTER TABLE ONLY public._sqlx_migrations
    ADD CONSTRAINT _sqlx_migrations_pkey PRIMARY KEY (version);
-- Name: idempotency idempotency_pkey; Type: CONSTRAINT; Schema: public; Owner: -
ALTER TABLE ONLY public.idempotency
    ADD CONSTRAINT idempotency_pkey PRIMARY KEY (tenant, principal, method, key);
-- Name: outbox_journal outbox_journal_pkey; Type: CONSTRAINT; Schema: public; Owner: -
ALTER TABLE ONLY public.outbox_journal
    ADD CONSTRAINT outbox_journal_pkey PRIMARY KEY (id);
-- Name: outbox_parked outbox_parked_pkey; Type: CONSTRAINT; Schema: public; Owner: -
ALTER TABLE ONLY public.outbox_parked
    ADD CONSTRAINT outbox_parked_pkey PRIMARY KEY (seq);
-- Name: outbox_passed outbox_passed_pkey; Type: CONSTRAINT; Schema: public; Owner: -
ALTER TABLE ONLY public.outbox_passed
    ADD CONSTRAINT outbox_passed_pkey PRIMARY KEY (day);
-- Name: outbox_relay outbox_relay_pkey; Type: CONSTRAINT; Schema: public; Owner: -
ALTER TABLE ONLY public.outbox_relay
    ADD CONSTRAINT outbox_relay_pkey PRIMARY KEY (only_row);
-- Name: todo_label todo_label_pkey; Type: CONSTRAINT; Schema: public; Owner: -
ALTER TABLE ONLY public.todo_label
    ADD CONSTRAINT todo_label_pkey PRIMARY KEY (tenant, label, todo_id);
-- Name: todo todo_pkey; Type: CONSTRAINT; Schema: public; Owner: -
ALTER TABLE ONLY public.todo
    ADD CONSTRAINT todo_pkey PRIMARY KEY (tenant, id);
-- Name: idempotency_created_at_idx; Type: INDEX; Schema: public; Owner: -
CREATE INDEX idempotency_created_at_idx ON public.idempotency USING btree (created_at);
-- Name: outbox_seq_idx; Type: INDEX; Schema: public; Owner: -
CREATE INDEX outbox_seq_idx ON ONLY public.outbox USING btree (seq);
-- Name: outbox_20261127_seq_idx; Type: INDEX; Schema: public; Owner: -
CREATE INDEX outbox_20261127_seq_idx ON public.outbox_20261127 USING btree (seq);
-- Name: outbox_20261128_seq_idx; Type: INDEX; Schema: public; Owner: -
CREATE INDEX outbox_20261128_seq_idx ON public.outbox_20261128 USING btree (seq);
-- Name: outbox_20261129_seq_idx; Type: INDEX; Schema: public; Owner: -
CREATE INDEX outbox_20261129_seq_idx ON public.outbox_20261129 USING btree (seq);
-- Name: outbox_20261130_seq_idx; Type: INDEX; Schema: public; Owner: -
CREATE INDEX outbox_20261130_seq_idx ON public.outbox_20261130 USING btree (seq);
-- Name: outbox_20261201_seq_idx; Type: INDEX; Schema: public; Owner: -
CREATE INDEX outbox_20261201_seq_idx ON public.outbox_20261201 USING btree (seq);
-- Name: outbox_20261202_seq_idx; Type: INDEX; Schema: public; Owner: -
CREATE INDEX outbox_20261202_seq_idx ON public.outbox_20261202 USING btree (seq);
-- Name: outbox_20261203_seq_idx; Type: INDEX; Schema: public; Owner: -
CREATE INDEX outbox_20261203_seq_idx ON public.outbox_20261203 USING btree (seq);
-- Name: outbox_20261204_seq_idx; Type: INDEX; Schema: public; Owner: -
CREATE INDEX outbox_20261204_seq_idx ON public.outbox_20261204 USING btree (seq);
-- Name: outbox_20261205_seq_idx; Type: INDEX; Schema: public; Owner: -
CREATE INDEX outbox_20261205_seq_idx ON public.outbox_20261205 USING btree (seq);
-- Name: todo_assignee_idx; Type: INDEX; Schema: public; Owner: -
CREATE INDEX todo_assignee_idx ON public.todo USING btree (tenant, assignee, id) WHERE (delete_time IS NULL);
-- Name: todo_label_todo_idx; Type: INDEX; Schema: public; Owner: -
CREATE INDEX todo_label_todo_idx ON public.todo_label USING btree (tenant, todo_id);
-- Name: todo_list_idx; Type: INDEX; Schema: public; Owner: -
CREATE INDEX todo_list_idx ON public.todo USING btree (tenant, id) WHERE (delete_time IS NULL);
-- Name: todo_status_idx; Type: INDEX; Schema: public; Owner: -
CREATE INDEX todo_status_idx ON public.todo USING btree (tenant, status, id) WHERE (delete_time IS NULL);
-- Name: outbox_20261127_seq_idx; Type: INDEX ATTACH; Schema: public; Owner: -
ALTER INDEX public.outbox_seq_idx ATTACH PARTITION public.outbox_20261127_seq_idx;
-- Name: outbox_20261128_seq_idx; Type: INDEX ATTACH; Schema: public; Owner: -
ALTER INDEX public.outbox_seq_idx ATTACH PARTITION public.outbox_20261128_seq_idx;
-- Name: outbox_20261129_seq_idx; Type: INDEX ATTACH; Schema: public; Owner: -
ALTER INDEX public.outbox_seq_idx ATTACH PARTITION public.outbox_20261129_seq_idx;
-- Name: outbox_20261130_seq_idx; Type: INDEX ATTACH; Schema: public; Owner: -
ALTER INDEX public.outbox_seq_idx ATTACH PARTITION public.outbox_20261130_seq_idx;
-- Name: outbox_20261201_seq_idx; Type: INDEX ATTACH; Schema: public; Owner: -
ALTER INDEX public.outbox_seq_idx ATTACH PARTITION public.outbox_20261201_seq_idx;
-- Name: outbox_20261202_seq_idx; Type: INDEX ATTACH; Schema: public; Owner: -
ALTER INDEX public.outbox_seq_idx ATTACH PARTITION public.outbox_20261202_seq_idx;
-- Name: outbox_20261203_seq_idx; Type: INDEX ATTACH; Schema: public; Owner: -
ALTER INDEX public.outbox_seq_idx ATTACH PARTITION public.outbox_20261203_seq_idx;
-- Name: outbox_20261204_seq_idx; Type: INDEX ATTACH; Schema: public; Owner: -
ALTER INDEX public.outbox_seq_idx ATTACH PARTITION public.outbox_20261204_seq_idx;
-- Name: outbox_20261205_seq_idx; Type: INDEX ATTACH; Schema: public; Owner: -
ALTER INDEX public.outbox_seq_idx ATTACH PARTITION public.outbox_20261205_seq_idx;
-- Name: todo_label todo_label_tenant_todo_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
ALTER TABLE ONLY public.todo_label
    ADD CONSTRAINT todo_label_tenant_todo_id_fkey FOREIGN KEY (tenant, todo_id) REFERENCES public.todo(tenant, id);
-- Name: idempotency; Type: ROW SECURITY; Schema: public; Owner: -
ALTER TABLE public.idempotency ENABLE ROW LEVEL SECURITY;
-- Name: idempotency of_tenant; Type: POLICY; Schema: public; Owner: -
CREATE POLICY of_tenant ON public.idempotency TO todo_app USING ((tenant = current_setting('app.tenant'::text, true))) WITH CHECK ((tenant = current_setting('app.tenant'::text, true)));
-- Name: outbox of_tenant; Type: POLICY; Schema: public; Owner: -
CREATE POLICY of_tenant ON public.outbox FOR INSERT TO todo_app WITH CHECK ((tenant = current_setting('app.tenant'::text, true)));
-- Name: todo of_tenant; Type: POLICY; Schema: public; Owner: -
CREATE POLICY of_tenant ON public.todo TO todo_app USING ((tenant = current_setting('app.tenant'::text, true))) WITH CHECK ((tenant = current_setting('app.tenant'::text, true)));
-- Name: todo_label of_tenant; Type: POLICY; Schema: public; Owner: -
CREATE POLICY of_tenant ON public.todo_label TO todo_app USING ((tenant = current_setting('app.tenant'::text, true))) WITH CHECK ((tenant = current_setting('app.tenant'::text, true)));
-- Name: outbox of_tenant_again; Type: POLICY; Schema: public; Owner: -
CREATE POLICY of_tenant_again ON public.outbox FOR SELECT TO todo_app USING ((tenant = current_setting('app.tenant'::text, true)));
-- Name: outbox operator; Type: POLICY; Schema: public; Owner: -
CREATE POLICY operator ON public.outbox TO todo_owner USING (true) WITH CHECK (true);
-- Name: outbox; Type: ROW SECURITY; Schema: public; Owner: -
ALTER TABLE public.outbox ENABLE ROW LEVEL SECURITY;
-- Name: outbox relay; Type: POLICY; Schema: public; Owner: -
CREATE POLICY relay ON public.outbox FOR SELECT TO todo_relay USING (true);
-- Name: idempotency sweep; Type: POLICY; Schema: public; Owner: -
CREATE POLICY sweep ON public.idempotency TO todo_owner USING (true);
-- Name: todo; Type: ROW SECURITY; Schema: public; Owner: -
ALTER TABLE public.todo ENABLE ROW LEVEL SECURITY;
-- Name: todo_label; Type: ROW SECURITY; Schema: public; Owner: -
ALTER TABLE public.todo_label ENABLE ROW LEVEL SECURITY;
-- Name: FUNCTION idempotency_sweep(at_most integer); Type: ACL; Schema: public; Owner: -
REVOKE ALL ON FUNCTION public.idempotency_sweep(at_most integer) FROM PUBLIC;
GRANT ALL ON FUNCTION public.idempotency_sweep(at_most integer) TO todo_app;
-- Name: FUNCTION idempotency_sweep(at_most integer, from_time timestamp with time zone, OUT swept bigint, OUT up_to timestamp with time zone); Type: ACL; Schema: public; Owner: -
REVOKE ALL ON FUNCTION public.idempotency_sweep(at_most integer, from_time timestamp with time zone, OUT swept bigint, OUT up_to timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION public.idempotency_sweep(at_most integer, from_time timestamp with time zone, OUT swept bigint, OUT up_to timestamp with time zone) TO todo_app;
-- Name: FUNCTION outbox_create_partitions(days_ahead integer); Type: ACL; Schema: public; Owner: -
REVOKE ALL ON FUNCTION public.outbox_create_partitions(days_ahead integer) FROM PUBLIC;
GRANT ALL ON FUNCTION public.outbox_create_partitions(days_ahead integer) TO todo_relay;
-- Name: FUNCTION outbox_drop_partitions(keep_days integer); Type: ACL; Schema: public; Owner: -
REVOKE ALL ON FUNCTION public.outbox_drop_partitions(keep_days integer) FROM PUBLIC;
GRANT ALL ON FUNCTION public.outbox_drop_partitions(keep_days integer) TO todo_relay;
-- Name: TABLE idempotency; Type: ACL; Schema: public; Owner: -
GRANT SELECT,INSERT ON TABLE public.idempotency TO todo_app;
-- Name: SEQUENCE outbox_seq; Type: ACL; Schema: public; Owner: -
GRANT USAGE ON SEQUENCE public.outbox_seq TO todo_app;
GRANT SELECT ON SEQUENCE public.outbox_seq TO todo_relay;
-- Name: TABLE outbox; Type: ACL; Schema: public; Owner: -
GRANT INSERT ON TABLE public.outbox TO todo_app;
GRANT SELECT ON TABLE public.outbox TO todo_relay;
-- Name: COLUMN outbox.seq; Type: ACL; Schema: public; Owner: -
GRANT SELECT(seq) ON TABLE public.outbox TO todo_app;
-- Name: COLUMN outbox.created_at; Type: ACL; Schema: public; Owner: -
GRANT SELECT(created_at) ON TABLE public.outbox TO todo_app;
-- Name: TABLE outbox_journal; Type: ACL; Schema: public; Owner: -
GRANT SELECT,INSERT ON TABLE public.outbox_journal TO todo_relay;
-- Name: TABLE outbox_parked; Type: ACL; Schema: public; Owner: -
GRANT SELECT,INSERT,UPDATE ON TABLE public.outbox_parked TO todo_relay;
-- Name: TABLE outbox_passed; Type: ACL; Schema: public; Owner: -
GRANT SELECT ON TABLE public.outbox_passed TO todo_relay;
-- Name: TABLE outbox_relay; Type: ACL; Schema: public; Owner: -
GRANT SELECT,UPDATE ON TABLE public.outbox_relay TO todo_relay;
-- Name: TABLE todo; Type: ACL; Schema: public; Owner: -
GRANT SELECT,INSERT,UPDATE ON TABLE public.todo TO todo_app;
-- Name: TABLE todo_label; Type: ACL; Schema: public; Owner: -
GRANT SELECT,INSERT,DELETE ON TABLE public.todo_label TO todo_app;
