-- Tables of a migration on a shard, as TRUNCATE takes them, and whether foreign keys refer to
-- them or come from them. $1 names of tables.
WITH present AS (
    SELECT t.oid, pg_partition_root(t.oid) AS root
      FROM (SELECT to_regclass(n.name) AS oid FROM unnest($1::text[]) AS n (name)) AS t
     WHERE t.oid IS NOT NULL
), whole AS (
    -- Partitioned tables of which the migration has all: only as a whole do they satisfy
    -- their foreign keys.
    SELECT r.root
      FROM (SELECT DISTINCT p.root FROM present AS p WHERE p.root IS NOT NULL) AS r
     CROSS JOIN LATERAL pg_partition_tree(r.root) AS l
      LEFT JOIN present AS o ON o.oid = l.relid
     WHERE l.isleaf
     GROUP BY r.root
    HAVING count(*) = count(o.oid)
), target AS (
    SELECT DISTINCT coalesce(w.root, p.oid) AS oid, w.root IS NOT NULL AS whole
      FROM present AS p
      LEFT JOIN whole AS w ON w.root = p.root
), linked AS (
    SELECT k.conrelid AS oid FROM pg_constraint AS k WHERE k.contype = 'f'
    UNION
    SELECT k.confrelid FROM pg_constraint AS k WHERE k.contype = 'f'
)
SELECT CASE WHEN t.whole THEN '' ELSE 'ONLY ' END || t.oid::regclass::text,
       t.oid IN (SELECT l.oid FROM linked AS l)
       OR t.whole AND EXISTS (SELECT FROM pg_partition_tree(t.oid) AS r
                               WHERE r.relid IN (SELECT l.oid FROM linked AS l))
  FROM target AS t
 ORDER BY 1
