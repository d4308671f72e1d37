-- Several runs in one slot of a worker.

-- How many runs the worker takes into one slot.
ALTER TABLE taskvec.workers ADD COLUMN stack integer NOT NULL DEFAULT 1;

-- Which slot of its worker an attempt has, from 0. Running attempts in one slot were assigned together, as a pack.
ALTER TABLE taskvec.attempts ADD COLUMN slot integer NOT NULL DEFAULT 0;
-- Those that run now have one each.
UPDATE taskvec.attempts a SET slot = n.slot FROM (
    SELECT job_id, number, row_number() OVER (PARTITION BY worker_id ORDER BY job_id, number) - 1 AS slot
    FROM taskvec.attempts WHERE state = 'running'
) AS n
WHERE a.job_id = n.job_id AND a.number = n.number;
