-- What the tables of a publication depend on, and what belongs to them: all
-- objects that users made, as (class, schema, name). Read-only. $1 publication.
--
-- What a function names in a body that is a string isn't known to PostgreSQL.
WITH RECURSIVE published AS (
    SELECT c.oid
      FROM pg_publication_tables AS p
      JOIN pg_namespace AS n ON n.nspname = p.schemaname
      JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = p.tablename
     WHERE p.pubname = $1 AND n.nspname <> 'reshard'
), moved AS (
    SELECT p.oid FROM published AS p
    UNION
    SELECT t.relid FROM published AS p CROSS JOIN LATERAL pg_partition_tree(p.oid) AS t
    UNION
    SELECT a.relid FROM published AS p CROSS JOIN LATERAL pg_partition_ancestors(p.oid) AS a
), needed (classid, objid) AS (
    SELECT 'pg_class'::regclass::oid, m.oid FROM moved AS m
    UNION
    SELECT e.classid, e.objid
      FROM needed AS n
     CROSS JOIN LATERAL (
              -- what it needs
              SELECT d.refclassid, d.refobjid
                FROM pg_depend AS d
               WHERE d.classid = n.classid AND d.objid = n.objid
              UNION ALL
              -- what is a part of it: indexes, constraints, defaults, triggers, ...
              SELECT d.classid, d.objid
                FROM pg_depend AS d
               WHERE d.refclassid = n.classid AND d.refobjid = n.objid
                 AND d.deptype IN ('a', 'i', 'P', 'S')
              UNION ALL
              SELECT 'pg_cast'::regclass, c.oid
                FROM pg_cast AS c
               WHERE n.classid = 'pg_type'::regclass AND n.objid IN (c.castsource, c.casttarget)
              UNION ALL
              SELECT 'pg_user_mapping'::regclass, u.oid
                FROM pg_user_mapping AS u
               WHERE n.classid = 'pg_foreign_server'::regclass AND u.umserver = n.objid
              UNION ALL
              -- Statements name functions and operators without their arguments.
              SELECT 'pg_proc'::regclass, o.oid
                FROM pg_proc AS p
                JOIN pg_proc AS o ON o.proname = p.proname AND o.pronamespace = p.pronamespace
               WHERE n.classid = 'pg_proc'::regclass AND p.oid = n.objid
              UNION ALL
              SELECT 'pg_operator'::regclass, o.oid
                FROM pg_operator AS p
                JOIN pg_operator AS o ON o.oprname = p.oprname AND o.oprnamespace = p.oprnamespace
               WHERE n.classid = 'pg_operator'::regclass AND p.oid = n.objid
           ) AS e (classid, objid)
     -- 16384 is FirstNormalObjectId: those below are in every database.
     WHERE e.objid >= 16384
       AND e.classid NOT IN ('pg_publication'::regclass, 'pg_publication_rel'::regclass,
                             'pg_publication_namespace'::regclass, 'pg_subscription'::regclass)
), named (class, namespace, name) AS (
    SELECT 'relation', c.relnamespace, c.relname::text
      FROM needed AS n JOIN pg_class AS c ON c.oid = n.objid
     WHERE n.classid = 'pg_class'::regclass AND c.relkind NOT IN ('i', 'I', 't')
    UNION ALL
    SELECT 'type', t.typnamespace, t.typname
      FROM needed AS n JOIN pg_type AS t ON t.oid = n.objid
     WHERE n.classid = 'pg_type'::regclass
    UNION ALL
    SELECT 'routine', p.pronamespace, p.proname
      FROM needed AS n JOIN pg_proc AS p ON p.oid = n.objid
     WHERE n.classid = 'pg_proc'::regclass
    UNION ALL
    SELECT 'operator', o.oprnamespace, o.oprname
      FROM needed AS n JOIN pg_operator AS o ON o.oid = n.objid
     WHERE n.classid = 'pg_operator'::regclass
    UNION ALL
    SELECT 'operator_class', o.opcnamespace, o.opcname
      FROM needed AS n JOIN pg_opclass AS o ON o.oid = n.objid
     WHERE n.classid = 'pg_opclass'::regclass
    UNION ALL
    SELECT 'operator_family', o.opfnamespace, o.opfname
      FROM needed AS n JOIN pg_opfamily AS o ON o.oid = n.objid
     WHERE n.classid = 'pg_opfamily'::regclass
    UNION ALL
    SELECT 'collation', c.collnamespace, c.collname
      FROM needed AS n JOIN pg_collation AS c ON c.oid = n.objid
     WHERE n.classid = 'pg_collation'::regclass
    UNION ALL
    SELECT 'conversion', c.connamespace, c.conname
      FROM needed AS n JOIN pg_conversion AS c ON c.oid = n.objid
     WHERE n.classid = 'pg_conversion'::regclass
    UNION ALL
    SELECT 'statistics', s.stxnamespace, s.stxname
      FROM needed AS n JOIN pg_statistic_ext AS s ON s.oid = n.objid
     WHERE n.classid = 'pg_statistic_ext'::regclass
    UNION ALL
    SELECT 'text_search_configuration', t.cfgnamespace, t.cfgname
      FROM needed AS n JOIN pg_ts_config AS t ON t.oid = n.objid
     WHERE n.classid = 'pg_ts_config'::regclass
    UNION ALL
    SELECT 'text_search_dictionary', t.dictnamespace, t.dictname
      FROM needed AS n JOIN pg_ts_dict AS t ON t.oid = n.objid
     WHERE n.classid = 'pg_ts_dict'::regclass
    UNION ALL
    SELECT 'text_search_parser', t.prsnamespace, t.prsname
      FROM needed AS n JOIN pg_ts_parser AS t ON t.oid = n.objid
     WHERE n.classid = 'pg_ts_parser'::regclass
    UNION ALL
    SELECT 'text_search_template', t.tmplnamespace, t.tmplname
      FROM needed AS n JOIN pg_ts_template AS t ON t.oid = n.objid
     WHERE n.classid = 'pg_ts_template'::regclass
    UNION ALL
    SELECT 'schema', NULL, s.nspname
      FROM needed AS n JOIN pg_namespace AS s ON s.oid = n.objid
     WHERE n.classid = 'pg_namespace'::regclass
    UNION ALL
    -- initdb's own number is below 16384, its owner and privileges may be the user's.
    SELECT 'schema', NULL, 'public'
    UNION ALL
    SELECT 'extension', NULL, x.extname
      FROM needed AS n JOIN pg_extension AS x ON x.oid = n.objid
     WHERE n.classid = 'pg_extension'::regclass
    UNION ALL
    SELECT 'language', NULL, l.lanname
      FROM needed AS n JOIN pg_language AS l ON l.oid = n.objid
     WHERE n.classid = 'pg_language'::regclass
    UNION ALL
    SELECT 'access_method', NULL, a.amname
      FROM needed AS n JOIN pg_am AS a ON a.oid = n.objid
     WHERE n.classid = 'pg_am'::regclass
    UNION ALL
    SELECT 'foreign_data_wrapper', NULL, w.fdwname
      FROM needed AS n JOIN pg_foreign_data_wrapper AS w ON w.oid = n.objid
     WHERE n.classid = 'pg_foreign_data_wrapper'::regclass
    UNION ALL
    SELECT 'foreign_server', NULL, s.srvname
      FROM needed AS n JOIN pg_foreign_server AS s ON s.oid = n.objid
     WHERE n.classid = 'pg_foreign_server'::regclass
    UNION ALL
    SELECT 'user_mapping', NULL,
           CASE u.umuser WHEN 0 THEN 'public' ELSE pg_get_userbyid(u.umuser) END || ' SERVER ' || s.srvname
      FROM needed AS n
      JOIN pg_user_mapping AS u ON u.oid = n.objid
      JOIN pg_foreign_server AS s ON s.oid = u.umserver
     WHERE n.classid = 'pg_user_mapping'::regclass
    UNION ALL
    -- As pg_dump names them: (source AS target), FOR type LANGUAGE language.
    SELECT 'cast', NULL, format('(%s AS %s)', f.name, t.name)
      FROM needed AS n
      JOIN pg_cast AS c ON c.oid = n.objid
     CROSS JOIN LATERAL (SELECT concat(nullif(s.nspname || '.', 'pg_catalog.'), y.typname)
                           FROM pg_type AS y JOIN pg_namespace AS s ON s.oid = y.typnamespace
                          WHERE y.oid = c.castsource) AS f (name)
     CROSS JOIN LATERAL (SELECT concat(nullif(s.nspname || '.', 'pg_catalog.'), y.typname)
                           FROM pg_type AS y JOIN pg_namespace AS s ON s.oid = y.typnamespace
                          WHERE y.oid = c.casttarget) AS t (name)
     WHERE n.classid = 'pg_cast'::regclass
    UNION ALL
    SELECT 'transform', NULL, format('FOR %s LANGUAGE %s', f.name, l.lanname)
      FROM needed AS n
      JOIN pg_transform AS r ON r.oid = n.objid
      JOIN pg_language AS l ON l.oid = r.trflang
     CROSS JOIN LATERAL (SELECT concat(nullif(s.nspname || '.', 'pg_catalog.'), y.typname)
                           FROM pg_type AS y JOIN pg_namespace AS s ON s.oid = y.typnamespace
                          WHERE y.oid = r.trftype) AS f (name)
     WHERE n.classid = 'pg_transform'::regclass
)
SELECT DISTINCT m.class, s.nspname::text, m.name
  FROM named AS m
  LEFT JOIN pg_namespace AS s ON s.oid = m.namespace
