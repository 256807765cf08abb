-- What a source database holds apart from its published tables, as one JSON
-- document. Read-only. $1 publication, $2 leave owners out, $3 say what roles and tablespaces
-- are needed for.
WITH published AS (
    SELECT c.oid
      FROM pg_publication_tables AS p
      JOIN pg_namespace AS n ON n.nspname = p.schemaname
      JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = p.tablename
     WHERE p.pubname = $1
), moved AS (
    SELECT oid FROM published
    UNION
    SELECT t.relid::oid FROM published AS p CROSS JOIN LATERAL pg_partition_tree(p.oid) AS t
), unlogged AS (
    SELECT format('%I.%I', n.nspname, c.relname) AS name
      FROM pg_class AS c
      JOIN pg_namespace AS n ON n.oid = c.relnamespace
     WHERE c.relkind = 'r' AND c.relpersistence = 'u'
       AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'reshard')
       AND (c.oid IN (SELECT oid FROM moved)
            OR EXISTS (SELECT FROM pg_publication AS p WHERE p.pubname = $1 AND p.puballtables)
            OR EXISTS (SELECT FROM pg_publication_namespace AS s
                         JOIN pg_publication AS p ON p.oid = s.pnpubid
                        WHERE p.pubname = $1 AND s.pnnspid = n.oid))
), used_role AS (
    -- Owners, grantees and roles of policies; initdb's own superuser isn't in pg_shdepend.
    SELECT d.refobjid AS oid, o.class, o.schema_name, o.name
      FROM pg_shdepend AS d
      LEFT JOIN LATERAL (
               SELECT 'relation', n.nspname, c.relname
                 FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
                WHERE d.classid = 'pg_class'::regclass AND c.oid = d.objid
               UNION ALL
               SELECT 'routine', n.nspname, p.proname
                 FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
                WHERE d.classid = 'pg_proc'::regclass AND p.oid = d.objid
               UNION ALL
               SELECT 'type', n.nspname, t.typname
                 FROM pg_type AS t JOIN pg_namespace AS n ON n.oid = t.typnamespace
                WHERE d.classid = 'pg_type'::regclass AND t.oid = d.objid
               UNION ALL
               SELECT 'schema', NULL, n.nspname
                 FROM pg_namespace AS n
                WHERE d.classid = 'pg_namespace'::regclass AND n.oid = d.objid
               UNION ALL
               SELECT 'relation', n.nspname, c.relname
                 FROM pg_policy AS p JOIN pg_class AS c ON c.oid = p.polrelid
                 JOIN pg_namespace AS n ON n.oid = c.relnamespace
                WHERE d.classid = 'pg_policy'::regclass AND p.oid = d.objid
               UNION ALL
               SELECT 'default_privileges', n.nspname, 'default privileges'
                 FROM pg_default_acl AS a LEFT JOIN pg_namespace AS n ON n.oid = a.defaclnamespace
                WHERE d.classid = 'pg_default_acl'::regclass AND a.oid = d.objid
               UNION ALL
               -- Operators, collations, text search objects...
               SELECT NULL, i.schema::name, NULL
                 FROM pg_identify_object(d.classid, d.objid, 0) AS i
                WHERE d.classid NOT IN ('pg_class'::regclass, 'pg_proc'::regclass, 'pg_type'::regclass,
                                        'pg_namespace'::regclass, 'pg_policy'::regclass,
                                        'pg_default_acl'::regclass)
           ) AS o (class, schema_name, name) ON true
     WHERE d.refclassid = 'pg_authid'::regclass
       AND d.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND (d.deptype IN ('a', 'r')
            -- Default privileges and user mappings are made for a role.
            OR d.deptype = 'o' AND (NOT $2 OR d.classid IN ('pg_default_acl'::regclass,
                                                            'pg_user_mapping'::regclass)))
       AND NOT EXISTS (SELECT FROM pg_depend AS e
                        WHERE e.classid = d.classid AND e.objid = d.objid AND e.deptype = 'e')
       AND NOT EXISTS (SELECT FROM pg_foreign_server AS s
                         JOIN pg_foreign_data_wrapper AS w ON w.oid = s.srvfdw
                        WHERE d.classid = 'pg_foreign_server'::regclass AND s.oid = d.objid
                          AND w.fdwname = 'reshard')
       AND NOT EXISTS (SELECT FROM pg_publication AS p
                        WHERE d.classid = 'pg_publication'::regclass AND p.oid = d.objid)
       AND NOT EXISTS (SELECT FROM pg_subscription AS s
                        WHERE d.classid = 'pg_subscription'::regclass AND s.oid = d.objid)
    UNION
    SELECT c.relowner, 'relation', n.nspname, c.relname
      FROM pg_class AS c
      JOIN pg_namespace AS n ON n.oid = c.relnamespace
     WHERE NOT $2 AND c.relowner = 10
       AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'reshard')
       AND n.nspname !~ '^pg_(toast|temp)'
       AND NOT EXISTS (SELECT FROM pg_depend AS e WHERE e.classid = 'pg_class'::regclass
                          AND e.objid = c.oid AND e.deptype = 'e')
    UNION
    -- Owners that are left out, but have given or taken privileges of their own.
    SELECT o.owner, o.class, o.schema_name, o.name
      FROM (SELECT c.relowner, 'relation', n.nspname, c.relname, c.relacl,
                   acldefault(CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", c.relowner)
              FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
             WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'reshard')
            UNION ALL
            SELECT n.nspowner, 'schema', NULL, n.nspname, n.nspacl, acldefault('n', n.nspowner)
              FROM pg_namespace AS n WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'reshard')
           ) AS o (owner, class, schema_name, name, acl, own)
     WHERE $2 AND o.acl IS NOT NULL
       AND ARRAY(SELECT x.privilege_type FROM aclexplode(o.acl) AS x WHERE x.grantee = o.owner ORDER BY 1)
           IS DISTINCT FROM
           ARRAY(SELECT x.privilege_type FROM aclexplode(o.own) AS x WHERE x.grantee = o.owner ORDER BY 1)
       AND (o.owner = 10 OR o.owner >= 16384)
)
SELECT jsonb_build_object(
    'tablespaces', (
        SELECT coalesce(jsonb_agg(jsonb_build_object('name', t.spcname, 'quoted', quote_ident(t.spcname),
                                      'uses', CASE WHEN $3 THEN u.uses ELSE '[]' END)
                                  ORDER BY t.spcname), '[]')
          FROM (SELECT c.reltablespace AS oid,
                       -- An index comes along with its table.
                       jsonb_agg(jsonb_build_object('class', 'relation', 'schema_name', n.nspname,
                                                    'name', coalesce(r.relname, c.relname))) AS uses
                  FROM pg_class AS c
                  JOIN pg_namespace AS n ON n.oid = c.relnamespace
                  LEFT JOIN pg_index AS i ON i.indexrelid = c.oid
                  LEFT JOIN pg_class AS r ON r.oid = i.indrelid
                 WHERE c.reltablespace <> 0
                   AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'reshard')
                   AND n.nspname !~ '^pg_(toast|temp)'
                 GROUP BY c.reltablespace) AS u
          JOIN pg_tablespace AS t ON t.oid = u.oid AND t.spcname <> 'pg_global'),
    'schemas', (SELECT coalesce(jsonb_agg(n.nspname), '[]') FROM pg_namespace AS n),
    'row_security', (
        SELECT coalesce(jsonb_agg(jsonb_build_object(
                   'name', format('%I.%I', n.nspname, c.relname),
                   -- Rows are applied to partitions, not to the tables above them.
                   'refuses_apply', c.relkind = 'r' AND c.relforcerowsecurity
                                    AND NOT r.rolsuper AND NOT r.rolbypassrls)
                   ORDER BY n.nspname, c.relname), '[]')
          FROM pg_class AS c
          JOIN pg_namespace AS n ON n.oid = c.relnamespace
          JOIN pg_roles AS r ON r.oid = c.relowner
         WHERE c.relrowsecurity AND c.oid IN (SELECT oid FROM moved)),
    'relations', (
        SELECT coalesce(jsonb_agg(jsonb_build_object(
                   'schema_name', n.nspname, 'table_name', c.relname)), '[]')
          FROM pg_class AS c
          JOIN pg_namespace AS n ON n.oid = c.relnamespace
         WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
           -- Sequences of identity columns are parts of their tables.
           AND NOT EXISTS (SELECT FROM pg_depend AS i WHERE i.classid = 'pg_class'::regclass
                              AND i.objid = c.oid AND i.deptype = 'i' AND c.relkind = 'S')
           AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'reshard')
           AND n.nspname !~ '^pg_(toast|temp)'
           AND NOT EXISTS (SELECT FROM pg_depend AS e WHERE e.classid = 'pg_class'::regclass
                              AND e.objid = c.oid AND e.deptype = 'e')),
    'publications', (SELECT coalesce(jsonb_agg(p.pubname ORDER BY p.pubname), '[]')
                       FROM pg_publication AS p WHERE p.pubname NOT LIKE 'reshard\_%'),
    -- What of the publication makes UPDATE and DELETE fail without a replica identity.
    'publishes_changes', (SELECT coalesce(bool_or(p.pubupdate OR p.pubdelete), false)
                            FROM pg_publication AS p WHERE p.pubname = $1),
    'publications_of_all', (SELECT coalesce(jsonb_agg(quote_ident(p.pubname) ORDER BY p.pubname), '[]')
                              FROM pg_publication AS p WHERE p.puballtables),
    'slots_of_others', (
        SELECT coalesce(jsonb_agg(s.slot_name ORDER BY s.slot_name), '[]')
          FROM pg_replication_slots AS s
         WHERE s.database = current_database() AND s.plugin = 'pgoutput' AND NOT s.temporary
           AND s.slot_name NOT LIKE 'reshard\_%'),
    'columnless', (
        SELECT coalesce(jsonb_agg(jsonb_build_object(
                   'name', format('%I.%I', n.nspname, c.relname), 'filled', pg_relation_size(c.oid) > 0)
                   ORDER BY n.nspname, c.relname), '[]')
          FROM pg_publication_tables AS p
          JOIN pg_namespace AS n ON n.nspname = p.schemaname
          JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = p.tablename
         WHERE p.pubname = $1 AND p.attnames IS NULL AND c.relkind = 'r'),
    'unlogged', (SELECT coalesce(jsonb_agg(u.name ORDER BY u.name), '[]') FROM unlogged AS u),
    'subscriptions', (
        SELECT coalesce(jsonb_agg(jsonb_build_object(
                   'name', s.subname, 'quoted', quote_ident(s.subname), 'tables', r.tables)), '[]')
          FROM pg_subscription AS s
          JOIN pg_database AS d ON d.oid = s.subdbid AND d.datname = current_database()
         CROSS JOIN LATERAL (
               SELECT string_agg(r.srrelid::regclass::text, ', ' ORDER BY r.srrelid) AS tables
                 FROM pg_subscription_rel AS r
                WHERE r.srsubid = s.oid
                  AND (r.srrelid IN (SELECT oid FROM moved)
                       OR EXISTS (SELECT FROM pg_partition_tree(r.srrelid) AS t
                                   JOIN moved AS m ON m.oid = t.relid))) AS r
         WHERE s.subenabled AND s.subname !~ '^reshard_' AND r.tables IS NOT NULL),
    'large_objects', (SELECT count(*) FROM pg_largeobject_metadata),
    'used_roles', (SELECT coalesce(jsonb_agg(jsonb_build_object(
                              'name', r.rolname, 'quoted', quote_ident(r.rolname),
                              'login', r.rolcanlogin,
                              'uses', CASE WHEN $3 THEN (SELECT jsonb_agg(jsonb_build_object(
                                                  'class', u.class, 'schema_name', u.schema_name,
                                                  'name', u.name))
                                         FROM used_role AS u WHERE u.oid = r.oid)
                                      ELSE '[]' END)
                              ORDER BY r.rolname), '[]')
                     FROM pg_roles AS r WHERE r.oid IN (SELECT u.oid FROM used_role AS u))
)::text
