-- The event triggers of the DDL guard. After everything else: they would fire for the
-- extension's own objects, before there is all that they call.

CREATE EVENT TRIGGER reshard_concurrently ON ddl_command_start
    WHEN TAG IN ('CREATE INDEX', 'DROP INDEX', 'ALTER TABLE')
    EXECUTE FUNCTION reshard.guard_concurrently();
ALTER EVENT TRIGGER reshard_concurrently ENABLE ALWAYS;
COMMENT ON EVENT TRIGGER reshard_concurrently IS
    'DDL on tables of running migrations that commits before its end';

CREATE EVENT TRIGGER reshard_extension ON ddl_command_start WHEN TAG IN ('DROP EXTENSION')
    EXECUTE FUNCTION reshard.guard_extension();
ALTER EVENT TRIGGER reshard_extension ENABLE ALWAYS;
COMMENT ON EVENT TRIGGER reshard_extension IS 'DROP EXTENSION while a migration runs';

CREATE EVENT TRIGGER reshard_ddl ON ddl_command_end EXECUTE FUNCTION reshard.guard_ddl();
ALTER EVENT TRIGGER reshard_ddl ENABLE ALWAYS;
COMMENT ON EVENT TRIGGER reshard_ddl IS 'DDL on tables of running migrations';

CREATE EVENT TRIGGER reshard_drop ON sql_drop EXECUTE FUNCTION reshard.guard_ddl();
ALTER EVENT TRIGGER reshard_drop ENABLE ALWAYS;
COMMENT ON EVENT TRIGGER reshard_drop IS 'DROP of tables of running migrations';
