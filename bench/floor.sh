#!/usr/bin/env bash
# The floor: one session a shard loads pre-split binary files from local disk, all
# shards at once, into tables without indexes. No copy can be faster.
#
#   bench/floor.sh FOLDER 'conninfo of shard 0' 'conninfo of shard 1' ...
#
# The first run writes the files from what the shards hold (copy to them first);
# FOLDER must be writable for the servers. The tables are truncated and loaded.
set -euo pipefail
folder=$1
shift
tables=(narrow docs mixed omni)
run() { psql -X -q -v ON_ERROR_STOP=1 -d "$@"; }

shard=0
for conninfo in "$@"; do
    for table in "${tables[@]}"; do
        file=$folder/$table.$shard
        [ -e "$file" ] || run "$conninfo" -c "COPY $table TO '$file' (FORMAT binary)"
    done
    run "$conninfo" -c "TRUNCATE narrow, docs, mixed, omni" -c CHECKPOINT
    shard=$((shard + 1))
done
cat "$folder"/* > /dev/null

started=$(date +%s.%N)
shard=0
for conninfo in "$@"; do
    copies=()
    for table in "${tables[@]}"; do
        copies+=(-c "COPY $table FROM '$folder/$table.$shard' (FORMAT binary)")
    done
    run "$conninfo" "${copies[@]}" &
    shard=$((shard + 1))
done
wait
printf 'floor: %.2f s\n' "$(echo "$(date +%s.%N) - $started" | bc)"
