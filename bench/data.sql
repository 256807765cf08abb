-- The benchmark's four tables, about 780 MB as COPY data: narrow rows, 32 KB and
-- 16 KB out-of-line texts, and an omni table of 4 KB bytea; all of it times the
-- setting bench.scale. Of several source shards, bench.nodes, number bench.node has
-- the rows that hash places there, and all of the omni table.
CREATE SCHEMA bench;
-- Of the key's type, for everyone who filters rows by their placement.
CREATE TABLE bench.placement (k bigint) PARTITION BY HASH (k);
CREATE FUNCTION pg_temp.is_here(key bigint) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT satisfies_hash_partition('bench.placement'::regclass, current_setting('bench.nodes')::int,
                                    current_setting('bench.node')::int, key)
$$;

CREATE TABLE narrow (
    id bigint PRIMARY KEY, u1 uuid NOT NULL, u2 uuid, u3 uuid, u4 uuid, u5 uuid, u6 uuid, u7 uuid,
    u8 uuid, t1 timestamptz, t2 timestamptz, t3 timestamptz, t4 timestamptz, n1 int, n2 bigint,
    n3 float8, tenant_id bigint NOT NULL
);
INSERT INTO narrow
SELECT i, md5(i::text)::uuid, md5('b' || i)::uuid, md5('c' || i)::uuid, md5('d' || i)::uuid,
       md5('e' || i)::uuid, md5('f' || i)::uuid, md5('g' || i)::uuid, md5('h' || i)::uuid,
       now(), now() + i * interval '1 s', now() - i * interval '1 s', now(), i, i * 7, i / 3.0,
       i % 100003
  FROM generate_series(1, (2000000 * current_setting('bench.scale')::numeric)::int) AS i
 WHERE pg_temp.is_here(i % 100003);

CREATE TABLE docs (id bigint PRIMARY KEY, tenant_id bigint NOT NULL, body text);
ALTER TABLE docs ALTER body SET STORAGE EXTERNAL;
INSERT INTO docs
SELECT i, i, string_agg(md5(i || '/' || j), '')
  FROM generate_series(1, (5000 * current_setting('bench.scale')::numeric)::int) AS i, generate_series(1, 1024) AS j
 WHERE pg_temp.is_here(i) GROUP BY i;

CREATE TABLE mixed (
    id bigint PRIMARY KEY, tenant_id bigint NOT NULL, n numeric, m numeric(20, 4), a int[], b text[],
    body text
);
ALTER TABLE mixed ALTER body SET STORAGE EXTERNAL;
INSERT INTO mixed
SELECT i, i, i * 1.2345678, i * 3.5, ARRAY[i, i + 1, i + 2, i + 3], ARRAY['a' || i, 'b' || i],
       string_agg(md5(i || '/' || j), '')
  FROM generate_series(1, (3000 * current_setting('bench.scale')::numeric)::int) AS i, generate_series(1, 512) AS j
 WHERE pg_temp.is_here(i) GROUP BY i;

CREATE TABLE omni (id bigint PRIMARY KEY, body bytea);
ALTER TABLE omni ALTER body SET STORAGE EXTERNAL;
INSERT INTO omni
SELECT i, decode(string_agg(md5(i || '/' || j), ''), 'hex')
  FROM generate_series(1, (10000 * current_setting('bench.scale')::numeric)::int) AS i, generate_series(1, 256) AS j GROUP BY i;
