-- What psql's \df+ says about the functions.

COMMENT ON FUNCTION reshard_add_shard(text, integer, text) IS
    'declares a shard of a cluster, by number and connection string, and connects to it at once; while a migration uses it, replaces its connection string';
COMMENT ON FUNCTION reshard_drop_shard(text, integer) IS
    'forgets a shard, and with the last one the cluster''s sharding keys; touches nothing on it';
COMMENT ON FUNCTION reshard_clone_cluster(text, text) IS
    'declares a cluster of the same shards as another one, with its sharding keys and mappings, to change it then';
COMMENT ON FUNCTION reshard_set_sharding_key(text, text, text, regclass) IS
    'says by which column tables are spread over a cluster: all tables with that column, or one table alone';
COMMENT ON FUNCTION reshard_set_sharding_key(text, text[], text, regclass) IS
    'says by which columns together tables are spread over a cluster: all tables with those columns, or one table alone';
COMMENT ON FUNCTION reshard_drop_sharding_key(text, text, regclass, text) IS
    'takes back a sharding key';
COMMENT ON FUNCTION reshard_drop_sharding_key(text, text[], regclass, text) IS
    'takes back a sharding key of several columns';
COMMENT ON FUNCTION reshard_map_values(text, text, text[], integer) IS
    'maps single values of a sharding key by list to a shard; null stands for rows without a key';
COMMENT ON FUNCTION reshard_unmap_values(text, text, text[]) IS
    'takes the mapping of single values back';
COMMENT ON FUNCTION reshard_map_range(text, text, text, text, integer) IS
    'maps values of a sharding key by range, from the lower bound up to but not with the upper one, to a shard; null is no bound';
COMMENT ON FUNCTION reshard_unmap_range(text, text, text, text) IS
    'takes the mapping of a range back';
COMMENT ON FUNCTION reshard_map_default(text, text, integer) IS
    'says which shard has all keys that no value and no range is mapped for, null among them';
COMMENT ON FUNCTION reshard_unmap_default(text, text) IS
    'takes the default back: keys that are not mapped have no shard';
COMMENT ON FUNCTION reshard_shard_for(text, anyelement, text, regclass) IS
    'number of the shard that a value of the sharding key belongs to, null where no shard takes it; its type must be that of the column, and several columns are a row of them';
COMMENT ON FUNCTION reshard_preflight(text, text, text, jsonb) IS
    'lists all that would stop or spoil a run from one cluster to another; changes nothing';
COMMENT ON FUNCTION reshard_start(text, text, text, boolean, jsonb) IS
    'moves the tables of a publication to another cluster: schema, copy, replication, cutover; returns the number of the task';
COMMENT ON FUNCTION reshard_schema_sync(text, text, text, text, boolean, jsonb) IS
    'brings one phase of the source''s schema to the shards: pre or post; returns the number of the task';
COMMENT ON FUNCTION reshard_copy_data(text, text, text, text, jsonb) IS
    'copies the tables of a publication into a schema that is there, then replicates; returns the number of the task';
COMMENT ON FUNCTION reshard_replicate(text, text, text, text, jsonb) IS
    'replicates the tables of a publication without a copy, from now on or from an existing slot; returns the number of the task';
COMMENT ON FUNCTION reshard_cutover(bigint, boolean, jsonb) IS
    'makes the destination of a migration active; without a number, moves traffic along the live flow';
COMMENT ON FUNCTION reshard_rollback(bigint) IS
    'makes the source of a migration active again, with all that was written meanwhile';
COMMENT ON FUNCTION reshard_complete(bigint) IS
    'ends a migration after the switch: gives up the way back; the old cluster stays fenced';
COMMENT ON FUNCTION reshard_cancel(bigint) IS
    'ends a task before the switch and removes what a migration has made on all servers';
COMMENT ON FUNCTION reshard_stop_task(bigint) IS
    'stops a task where it is; reshard_resume() goes on';
COMMENT ON FUNCTION reshard_resume(bigint) IS
    'goes on with a failed or stopped task from where it was';
COMMENT ON FUNCTION reshard_verify(bigint, regclass[], double precision) IS
    'compares both clusters of a migration row by row, while both are written to; returns the number of the task';
COMMENT ON FUNCTION reshard_wait(bigint, text, interval) IS
    'blocks until a task reaches a phase, or its end; raises the task''s error if it fails';
COMMENT ON FUNCTION reshard_unfence(text) IS
    'opens the old cluster again after reshard_complete(); its rows are as old as the switch';
COMMENT ON FUNCTION reshard_pooler_ack(text, bigint, text) IS
    'a pooler says which epoch and state it obeys; the first call registers it';
COMMENT ON FUNCTION reshard_copy_part(text) IS
    'copies a part of a table for the coordinator of another shard''s migration; for superusers';
COMMENT ON FUNCTION reshard_apply_error(oid) IS
    'what the apply worker of a subscription failed with last; for superusers';
COMMENT ON FUNCTION reshard_added_columns(text) IS
    'names of the columns that an ALTER TABLE adds, null for any other statement; for the DDL guard';
COMMENT ON FUNCTION reshard_concurrently_changed(text) IS
    'the table or index that a statement with CONCURRENTLY is about, null for any other statement; for the DDL guard';
COMMENT ON FUNCTION reshard_commits_early(text) IS
    'whether a statement commits before its end, or ends one that did; for the DDL guard';

REVOKE ALL ON FUNCTION reshard_copy_part(text), reshard_apply_error(oid) FROM PUBLIC;
