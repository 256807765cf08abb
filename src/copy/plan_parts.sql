-- Parts of a wave's tables: ranges of blocks of about $3 bytes each, out-of-line
-- values included; the last part of each table has no end. $1 task, $2 wave.
WITH measured AS (
    UPDATE reshard.copy_table AS t
       SET relfilenode = pg_catalog.pg_relation_filenode(t.relation),
           blocks = coalesce(pg_catalog.pg_relation_size(t.relation)
                             / pg_catalog.current_setting('block_size')::bigint, 0),
           bytes_total = coalesce(pg_catalog.pg_table_size(t.relation), 0)
     WHERE t.task_id = $1 AND t.wave = $2 AND t.status = 'pending'
       AND NOT EXISTS (SELECT FROM reshard.copy_part AS p
                        WHERE p.task_id = t.task_id AND p.table_id = t.table_id)
    RETURNING t.table_id, t.blocks, t.bytes_total
), cut AS (
    SELECT m.*, pg_catalog.ceil(m.blocks::numeric
                    / least(m.blocks, greatest(1, pg_catalog.ceil(m.bytes_total::numeric / $3))))::bigint AS step
      FROM measured AS m
     WHERE m.blocks > 0
), part AS (
    SELECT c.table_id, c.bytes_total, c.blocks, c.step, s.part_no
      FROM cut AS c
     CROSS JOIN LATERAL pg_catalog.generate_series(1, (c.blocks + c.step - 1) / c.step) AS s (part_no)
)
INSERT INTO reshard.copy_part (task_id, table_id, part_no, block_from, block_to, claim_order, bytes_total)
SELECT $1, p.table_id, p.part_no, (p.part_no - 1) * p.step,
       CASE WHEN p.part_no * p.step < p.blocks THEN p.part_no * p.step END,
       pg_catalog.row_number() OVER (ORDER BY p.bytes_total DESC, p.table_id, p.part_no),
       (p.bytes_total * (least(p.part_no * p.step, p.blocks) - (p.part_no - 1) * p.step)
            / p.blocks::numeric)::bigint
  FROM part AS p
