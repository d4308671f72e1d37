#!/usr/bin/env bash
# 10 000 no-op jobs, then 100 single ones on an idle stack: total time, jobs/s, and latency from submit to start.
set -eu
cd "$(dirname "$0")/.."
taskvec=$PWD/target/release/taskvec
dir=$(mktemp -d /tmp/taskvec-bench-XXXXXX)
chmod 711 "$dir"
"$taskvec" up --data "$dir/data" --listen 127.0.0.1:0 --workers 2 >"$dir/up.log" 2>&1 &
stack=$!
trap 'kill -TERM $stack 2>/dev/null; wait $stack 2>/dev/null || true; rm -rf "$dir"' EXIT
until [ -e "$dir/data/server.json" ]; do sleep 0.1; done
export TASKVEC_DATA=$dir/data
sleep 2

sweep() { printf 'version: 1\nname: bench\nkind: selftest\nselftest: { jobs: %s, behaviour: succeed, millis: 0 }\nseed: %s\n' "$1" "$2"; }
sweep 10000 1 >"$dir/many.yaml"
"$taskvec" sweep submit "$dir/many.yaml" --wait -o quiet >/dev/null 2>"$dir/wait.log" || cat "$dir/wait.log"
"$taskvec" sql "SELECT count(*) AS jobs, round(extract(epoch FROM max(results.jobs.finished_at) - min(submitted_at))::numeric, 2) AS seconds,
    round(count(*) / extract(epoch FROM max(results.jobs.finished_at) - min(submitted_at))::numeric) AS jobs_per_second
    FROM results.jobs JOIN results.sweeps USING (sweep_id)"

for i in $(seq 2 101); do
    sweep 1 "$i" >"$dir/one.yaml"
    "$taskvec" sweep submit "$dir/one.yaml" --wait -o quiet >/dev/null 2>&1
done
"$taskvec" sql "SELECT count(*) AS sweeps,
    round((1000 * percentile_cont(0.5) WITHIN GROUP (ORDER BY wait))::numeric, 1) AS start_p50_ms,
    round((1000 * percentile_cont(0.99) WITHIN GROUP (ORDER BY wait))::numeric, 1) AS start_p99_ms
    FROM (SELECT extract(epoch FROM min(results.jobs.started_at) - min(submitted_at)) AS wait
          FROM results.jobs JOIN results.sweeps USING (sweep_id) GROUP BY sweep_id HAVING count(*) = 1) AS w"
