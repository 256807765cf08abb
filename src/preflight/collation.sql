-- How a server sorts texts of collations: provider, locale, rules and version of what it
-- sorts with; `C` where it compares bytes, as it is the same everywhere. Null where it has
-- no such collation. Read-only. $1 names.
SELECT w.name,
       CASE WHEN r.provider IS NULL THEN NULL
            WHEN r.provider = 'b' OR r.provider = 'c' AND r.locale ~ '^(C|POSIX|C\..*)$' THEN 'C'
            -- Names of one locale are spelled in several ways.
            WHEN r.provider = 'c' THEN concat_ws(' ', 'libc', lower(replace(r.locale, '-', '')), r.version)
            ELSE concat_ws(' ', 'icu', lower(replace(r.locale, '_', '-')), r.rules, r.version) END
  FROM unnest($1::text[]) AS w (name)
  JOIN pg_database AS d ON d.datname = current_database()
  LEFT JOIN LATERAL (
        SELECT CASE c.collprovider WHEN 'd' THEN d.datlocprovider ELSE c.collprovider END AS provider,
               CASE c.collprovider WHEN 'd' THEN l.of_database ELSE l.of_collation END AS locale,
               CASE c.collprovider WHEN 'd' THEN to_jsonb(d) ->> 'daticurules'
                                   ELSE to_jsonb(c) ->> 'collicurules' END AS rules,
               CASE c.collprovider WHEN 'd' THEN pg_database_collation_actual_version(d.oid)
                                   ELSE pg_collation_actual_version(c.oid) END AS version
          FROM pg_collation AS c
          JOIN pg_namespace AS n ON n.oid = c.collnamespace
         CROSS JOIN LATERAL (
                -- Columns of these names came with versions 15 and 17.
                SELECT coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale', d.datcollate),
                       coalesce(to_jsonb(c) ->> 'colllocale', to_jsonb(c) ->> 'colliculocale', c.collcollate)
               ) AS l (of_database, of_collation)
         WHERE format('%I.%I', n.nspname, c.collname) = w.name
           AND c.collencoding IN (-1, d.encoding)
         ORDER BY c.collencoding DESC
         LIMIT 1) AS r ON true
