-- What has to be the same on every shard of a source, as one JSON document.
-- Read-only. $1 publication.
SELECT jsonb_build_object(
    'extension', (SELECT e.extversion FROM pg_extension AS e WHERE e.extname = 'reshard'),
    'published', (
        SELECT coalesce(jsonb_agg(format('%I.%I (%s)%s', p.schemaname, p.tablename,
                            array_to_string(p.attnames, ', '), ' WHERE ' || p.rowfilter)), '[]')
          FROM pg_publication_tables AS p WHERE p.pubname = $1 AND p.schemaname <> 'reshard'),
    'identities', (
        SELECT coalesce(jsonb_agg(format('replica identity %s %s of %I.%I', c.relreplident,
                            (SELECT x.relname FROM pg_index AS i JOIN pg_class AS x ON x.oid = i.indexrelid
                              WHERE i.indrelid = c.oid AND i.indisreplident), n.nspname, c.relname)), '[]')
          FROM pg_publication_tables AS p
          JOIN pg_namespace AS n ON n.nspname = p.schemaname
          JOIN pg_class AS r ON r.relnamespace = n.oid AND r.relname = p.tablename
         CROSS JOIN LATERAL (SELECT r.oid UNION SELECT t.relid FROM pg_partition_tree(r.oid) AS t) AS l (oid)
          JOIN pg_class AS c ON c.oid = l.oid AND c.relkind = 'r'
         WHERE p.pubname = $1 AND n.nspname <> 'reshard'),
    'sequences', (
        SELECT coalesce(jsonb_agg(format('sequence %I.%I increment %s from %s to %s%s', n.nspname, c.relname,
                            s.seqincrement, s.seqmin, s.seqmax, CASE WHEN s.seqcycle THEN ' cycle' END)), '[]')
          FROM pg_sequence AS s
          JOIN pg_class AS c ON c.oid = s.seqrelid AND c.relpersistence <> 't'
          JOIN pg_namespace AS n ON n.oid = c.relnamespace
         WHERE n.nspname <> 'reshard'
           AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.classid = 'pg_class'::regclass
                              AND d.objid = c.oid AND d.deptype = 'e'))
)::text
