-- Parts of a wave's tables: ranges of blocks of about $3 bytes each, out-of-line
-- values included; the last part of each table on a source shard has no end.
-- $1 task, $2 wave, $4 what was measured: a row for each table and source shard.
WITH measured AS (
    SELECT m.table_id, m.source_shard, m.relation, m.blocks, m.bytes
      FROM pg_catalog.jsonb_to_recordset($4)
           AS m (table_id int, source_shard int, relation bigint, blocks bigint, bytes bigint)
      JOIN reshard.copy_table AS t ON t.task_id = $1 AND t.table_id = m.table_id
     WHERE t.wave = $2 AND t.status = 'pending'
       AND NOT EXISTS (SELECT FROM reshard.copy_part AS p
                        WHERE p.task_id = $1 AND p.table_id = m.table_id)
), summed AS (
    UPDATE reshard.copy_table AS t
       SET blocks = m.blocks, bytes_total = m.bytes
      FROM (SELECT m.table_id, pg_catalog.sum(m.blocks)::bigint AS blocks,
                   pg_catalog.sum(m.bytes)::bigint AS bytes
              FROM measured AS m GROUP BY m.table_id) AS m
     WHERE t.task_id = $1 AND t.table_id = m.table_id
    RETURNING t.table_id, t.bytes_total
), cut AS (
    SELECT m.*, pg_catalog.ceil(m.blocks::numeric
                    / least(m.blocks, greatest(1, pg_catalog.ceil(m.bytes::numeric / $3))))::bigint AS step
      FROM measured AS m
     WHERE m.blocks > 0
), part AS (
    SELECT c.table_id, c.source_shard, c.relation, c.bytes, c.blocks, s.number,
           (s.number - 1) * c.step AS block_from,
           least(s.number * c.step, c.blocks) AS block_to
      FROM cut AS c
     CROSS JOIN LATERAL pg_catalog.generate_series(1, (c.blocks + c.step - 1) / c.step) AS s (number)
)
INSERT INTO reshard.copy_part
       (task_id, table_id, part_no, source_shard, relation, block_from, block_to, blocks,
        claim_order, bytes_total)
SELECT $1, p.table_id,
       pg_catalog.row_number() OVER (PARTITION BY p.table_id ORDER BY p.source_shard, p.number),
       p.source_shard, p.relation::oid, p.block_from,
       CASE WHEN p.block_to < p.blocks THEN p.block_to END,
       p.block_to - p.block_from,
       pg_catalog.row_number() OVER (ORDER BY s.bytes_total DESC, p.table_id, p.source_shard, p.number),
       (p.bytes * (p.block_to - p.block_from) / p.blocks::numeric)::bigint
  FROM part AS p
  JOIN summed AS s ON s.table_id = p.table_id
